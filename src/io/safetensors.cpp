#include "src/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <tuple>

#include "src/core/error.h"
#include "src/io/json.h"

namespace qt {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are used as they lie in the file");

constexpr std::uint64_t kPrefixBytes = 8;  // the header's length
constexpr std::string_view kMetadataKey = "__metadata__";

struct TypeRow {
  StoredType type;
  std::string_view name;
  std::int64_t bytes;
  std::optional<DType> dtype;
};

constexpr std::array<TypeRow, 17> kTypes{{
    {StoredType::boolean, "BOOL", 1, {}},
    {StoredType::u8, "U8", 1, DType::u8},
    {StoredType::i8, "I8", 1, {}},
    {StoredType::f8_e5m2, "F8_E5M2", 1, {}},
    {StoredType::f8_e4m3, "F8_E4M3", 1, {}},
    {StoredType::f8_e8m0, "F8_E8M0", 1, {}},
    {StoredType::i16, "I16", 2, {}},
    {StoredType::u16, "U16", 2, {}},
    {StoredType::f16, "F16", 2, DType::f16},
    {StoredType::bf16, "BF16", 2, DType::bf16},
    {StoredType::i32, "I32", 4, DType::i32},
    {StoredType::u32, "U32", 4, {}},
    {StoredType::f32, "F32", 4, DType::f32},
    {StoredType::c64, "C64", 8, {}},
    {StoredType::f64, "F64", 8, DType::f64},
    {StoredType::i64, "I64", 8, DType::i64},
    {StoredType::u64, "U64", 8, {}},
}};

const TypeRow& row_of(StoredType type) { return kTypes[static_cast<std::size_t>(type)]; }

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

struct HeaderEntry {
  std::string name;
  std::optional<StoredType> type;
  std::optional<std::vector<std::int64_t>> shape;
  std::array<std::uint64_t, 2> offsets{};
  int offset_count = -1;  // -1 until the list was seen
};

// The parser gathers a whole string or number before it hands it over, and takes several times its size to do
// so.
void require_short_tokens(std::string_view header, const std::string& file) {
  bool in_string = false;
  std::size_t begin = 0;  // of the string, or of the run without structure that a number is
  for (std::size_t i = 0; i < header.size(); ++i) {
    const char c = header[i];
    if (in_string && c == '\\') {
      ++i;
    } else if (c == '"') {
      in_string = !in_string;
      begin = i;
    } else if (!in_string && std::string_view(" \t\r\n,:[]{}").find(c) != std::string_view::npos) {
      begin = i;
    }
    const std::size_t limit = in_string ? Safetensors::kMaxStringBytes : Safetensors::kMaxNumberBytes;
    if (i - begin > limit) {
      throw DataError(fmt::format("{}: a {} in the header is longer than {} bytes", file,
                                  in_string ? "string" : "number", limit));
    }
  }
}

// Builds the list of tensors from parser events, without a document tree in between: the only memory is what
// is kept.
class HeaderReader {
 public:
  HeaderReader(const std::string& file, std::vector<HeaderEntry>& entries, Metadata& metadata)
      : file_(file), entries_(entries), metadata_(metadata) {}

  // The functions that Json::sax_parse calls.
  bool null() { return wrong("null"); }
  bool boolean(bool) { return wrong("a boolean"); }
  bool number_integer(std::int64_t) {
    if (in_ == In::shape || in_ == In::offsets) fail("'{}' has a negative number", list_name());
    return wrong("a number");
  }
  bool number_float(double, const std::string& text) {
    if (in_ == In::shape || in_ == In::offsets) {
      fail("'{}' has {}, which is not a whole number below 2^64", list_name(), in_quotes(text));
    }
    return wrong("a number");
  }
  bool binary(Json::binary_t&) { return wrong("binary data"); }

  bool number_unsigned(std::uint64_t value) {
    if (in_ == In::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        fail("'shape' has {}, which is beyond 63 bits", value);
      }
      auto& shape = *entries_.back().shape;
      if (shape.size() == Safetensors::kMaxRank)
        fail("'shape' has more than {} sizes", Safetensors::kMaxRank);
      shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (in_ == In::offsets) {
      auto& entry = entries_.back();
      if (entry.offset_count == 2) fail("'data_offsets' has more than two numbers");
      entry.offsets[static_cast<std::size_t>(entry.offset_count++)] = value;
      return true;
    }
    return wrong("a number");
  }

  bool string(std::string& value) {
    if (in_ == In::metadata) {
      if (metadata_.size() == Safetensors::kMaxMetadata) {
        throw DataError(
            fmt::format("{}: __metadata__ has more than {} entries", file_, Safetensors::kMaxMetadata));
      }
      if (!metadata_.emplace(key_, std::move(value)).second) {
        throw DataError(fmt::format("{}: __metadata__ has the key {} twice", file_, in_quotes(key_)));
      }
      return true;
    }
    if (in_ != In::tensor || key_ != "dtype") return wrong("a string");
    auto& entry = entries_.back();
    if (entry.type) fail("'dtype' appears twice");
    for (const auto& row : kTypes) {
      if (row.name == value) entry.type = row.type;
    }
    if (!entry.type) fail("unknown dtype {}", in_quotes(value));
    return true;
  }

  bool key(std::string& name) {
    key_ = std::move(name);
    if (in_ == In::tensor && key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
      fail("unknown field {}", in_quotes(key_));
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (in_ == In::nothing) {
      in_ = In::top;
      return true;
    }
    if (in_ != In::top) return wrong("an object");
    if (key_ == kMetadataKey) {
      if (has_metadata_) throw DataError(fmt::format("{}: __metadata__ appears twice", file_));
      has_metadata_ = true;
      in_ = In::metadata;
      return true;
    }
    if (entries_.size() == Safetensors::kMaxTensors) {
      throw DataError(
          fmt::format("{}: the header lists more than {} tensors", file_, Safetensors::kMaxTensors));
    }
    if (!valid_tensor_name(key_)) {
      throw DataError(
          fmt::format("{}: the tensor name {} is empty or has control characters", file_, in_quotes(key_)));
    }
    entries_.emplace_back().name = key_;
    in_ = In::tensor;
    return true;
  }

  bool end_object() {
    if (in_ == In::tensor) {
      const auto& entry = entries_.back();
      if (!entry.type) fail("'dtype' is missing");
      if (!entry.shape) fail("'shape' is missing");
      if (entry.offset_count < 0) fail("'data_offsets' is missing");
    }
    in_ = in_ == In::top ? In::nothing : In::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (in_ != In::tensor || key_ == "dtype") return wrong("an array");
    auto& entry = entries_.back();
    if (key_ == "shape") {
      if (entry.shape) fail("'shape' appears twice");
      entry.shape.emplace();
      in_ = In::shape;
    } else {
      if (entry.offset_count >= 0) fail("'data_offsets' appears twice");
      entry.offset_count = 0;
      in_ = In::offsets;
    }
    return true;
  }

  bool end_array() {
    if (in_ == In::offsets && entries_.back().offset_count != 2)
      fail("'data_offsets' has fewer than two numbers");
    in_ = In::tensor;
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const Json::exception& e) {
    throw_json_error(file_ + ": header", byte, e.what());
  }

 private:
  enum class In { nothing, top, metadata, tensor, shape, offsets };

  const char* list_name() const { return in_ == In::shape ? "shape" : "data_offsets"; }

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) const {
    throw DataError(fmt::format("{}: tensor {}: {}", file_, in_quotes(entries_.back().name),
                                fmt::format(text, std::forward<Args>(args)...)));
  }

  // A value of a kind that its place does not allow.
  bool wrong(const char* what) const {
    switch (in_) {
      case In::nothing: throw DataError(fmt::format("{}: the header is {}; expected an object", file_, what));
      case In::top:
        throw DataError(fmt::format("{}: {} is {}; expected an object", file_, in_quotes(key_), what));
      case In::metadata:
        throw DataError(
            fmt::format("{}: __metadata__ entry {} is {}; expected a string", file_, in_quotes(key_), what));
      case In::tensor:
        fail("{} is {}; expected {}", in_quotes(key_), what,
             key_ == "dtype" ? "a string" : "an array of numbers");
      case In::shape:
      case In::offsets: fail("'{}' holds {}; expected whole numbers", list_name(), what);
    }
    return false;
  }

  const std::string& file_;
  std::vector<HeaderEntry>& entries_;
  Metadata& metadata_;
  In in_ = In::nothing;
  std::string key_;
  bool has_metadata_ = false;
};

// The JSON text of the header, which begins after kPrefixBytes.
std::string_view header_of(const std::string& file, std::span<const std::byte> bytes) {
  if (bytes.size() < kPrefixBytes) {
    throw DataError(fmt::format("{}: has {} bytes; a safetensors file starts with 8 bytes of header length",
                                file, bytes.size()));
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > Safetensors::kMaxHeaderBytes) {
    throw DataError(
        fmt::format("{}: the header length is {}; the format allows at most {}: is this a safetensors file?",
                    file, header_bytes, Safetensors::kMaxHeaderBytes));
  }
  if (header_bytes > bytes.size() - kPrefixBytes) {
    throw DataError(
        fmt::format("{}: the header length is {}, but only {} bytes follow: the file is cut short", file,
                    header_bytes, bytes.size() - kPrefixBytes));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data() + kPrefixBytes), header_bytes);
  if (header.empty()) throw DataError(fmt::format("{}: the header is empty", file));
  if (header.front() != '{') throw DataError(fmt::format("{}: the header does not start with '{{'", file));
  // The parser would take it for the end of the text and leave what follows unread.
  if (const auto at = header.find('\0'); at != std::string_view::npos) {
    throw DataError(
        fmt::format("{}: a NUL byte in the header, at byte {} of the file", file, at + kPrefixBytes));
  }

  require_short_tokens(header, file);
  return header;
}

}  // namespace

std::string_view stored_name(StoredType type) { return row_of(type).name; }
std::int64_t stored_bytes(StoredType type) { return row_of(type).bytes; }
std::optional<DType> to_dtype(StoredType type) { return row_of(type).dtype; }

std::optional<std::int64_t> stored_bytes(StoredType type, std::span<const std::int64_t> shape) {
  std::int64_t bytes = stored_bytes(type);
  for (const std::int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return bytes;
}

bool valid_tensor_name(std::string_view name) {
  return !name.empty() && name != kMetadataKey && std::none_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  });
}

StoredType to_stored(DType type) {
  for (const auto& row : kTypes) {
    if (row.dtype == type) return row.type;
  }
  throw DTypeError(fmt::format("no stored type for {}", dtype_name(type)));
}

Safetensors Safetensors::open(const std::filesystem::path& path) {
  Safetensors result;
  result.file_ = path.string();
  result.map_.emplace(path);
  result.read(result.map_->bytes());
  return result;
}

Safetensors Safetensors::parse(std::span<const std::byte> bytes, std::string file) {
  Safetensors result;
  result.file_ = std::move(file);
  result.read(bytes);
  return result;
}

void Safetensors::read(std::span<const std::byte> bytes) {
  const std::string_view header = header_of(file_, bytes);
  std::vector<HeaderEntry> entries;
  HeaderReader reader(file_, entries, metadata_);
  Json::sax_parse(header.begin(), header.end(), &reader);

  const std::uint64_t data_offset = kPrefixBytes + header.size();
  const std::uint64_t data_bytes = bytes.size() - data_offset;
  tensors_.reserve(entries.size());
  for (auto& entry : entries) {
    const auto where = [&] { return fmt::format("{}: tensor {}", file_, in_quotes(entry.name)); };
    const std::uint64_t begin = entry.offsets[0], end = entry.offsets[1];
    if (begin > end)
      throw DataError(fmt::format("{}: data_offsets [{}, {}] are reversed", where(), begin, end));
    if (end > data_bytes) {
      throw DataError(fmt::format("{}: data_offsets [{}, {}] reach beyond the {} bytes of data", where(),
                                  begin, end, data_bytes));
    }
    const auto wanted = stored_bytes(*entry.type, *entry.shape);
    if (!wanted) {
      throw DataError(fmt::format("{}: the shape {} has more bytes than 63 bits can count", where(),
                                  shape_text(*entry.shape)));
    }
    if (static_cast<std::uint64_t>(*wanted) != end - begin) {
      throw DataError(fmt::format("{}: {} {} takes {} bytes, but data_offsets [{}, {}] give it {}", where(),
                                  shape_text(*entry.shape), stored_name(*entry.type), *wanted, begin, end,
                                  end - begin));
    }
    tensors_.push_back({std::move(entry.name), *entry.type, std::move(*entry.shape),
                        bytes.data() + data_offset + begin, end - begin, data_offset + begin});
  }

  // Empty tensors share their offset with a neighbour; they come first there, the name decides among them.
  std::sort(tensors_.begin(), tensors_.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(a.file_offset, a.bytes, a.name) < std::tie(b.file_offset, b.bytes, b.name);
  });
  std::uint64_t covered = data_offset;
  for (const auto& tensor : tensors_) {
    if (tensor.file_offset != covered) {
      throw DataError(fmt::format("{}: tensor {} starts at data byte {}, but the one before ends at {}: {}",
                                  file_, in_quotes(tensor.name), tensor.file_offset - data_offset,
                                  covered - data_offset,
                                  tensor.file_offset > covered ? "a hole" : "an overlap"));
    }
    covered += tensor.bytes;
  }
  if (covered != bytes.size()) {
    throw DataError(fmt::format("{}: {} bytes behind the last tensor belong to no tensor", file_,
                                bytes.size() - covered));
  }

  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(),
            [&](std::uint32_t a, std::uint32_t b) { return tensors_[a].name < tensors_[b].name; });
  for (std::size_t i = 1; i < by_name_.size(); ++i) {
    const auto& name = tensors_[by_name_[i]].name;
    if (name == tensors_[by_name_[i - 1]].name) {
      throw DataError(fmt::format("{}: the tensor {} appears twice", file_, in_quotes(name)));
    }
  }
}

const StoredTensor* Safetensors::find(std::string_view name) const {
  const auto it = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](std::uint32_t i, std::string_view n) { return tensors_[i].name < n; });
  return it != by_name_.end() && tensors_[*it].name == name ? &tensors_[*it] : nullptr;
}

const StoredTensor& Safetensors::get(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr) throw DataError(fmt::format("{}: has no tensor {}", file_, in_quotes(name)));
  return *tensor;
}

const StoredTensor& Safetensors::get(std::string_view name, DType type,
                                     std::span<const std::int64_t> shape) const {
  const StoredTensor& tensor = get(name);
  if (to_dtype(tensor.type) != type ||
      !std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    throw DataError(fmt::format("{}: tensor {} is {} {}; expected {} {}", file_, in_quotes(name),
                                shape_text(tensor.shape), stored_name(tensor.type), shape_text(shape),
                                stored_name(to_stored(type))));
  }
  return tensor;
}

}  // namespace qt

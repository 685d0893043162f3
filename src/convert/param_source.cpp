#include "src/convert/param_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "quant/format.h"
#include "src/core/error.h"
#include "src/core/half.h"
#include "src/io/json.h"
#include "src/io/manifest.h"
#include "src/io/run_folder.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::int64_t kPieceElems = 256 * 1024;
constexpr std::size_t kNoTensor = static_cast<std::size_t>(-1);

template <class Half>
void widen(std::span<const std::byte> from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    Half half;
    std::memcpy(&half, from.data() + i * sizeof half, sizeof half);
    to[i] = to_float(half);
  }
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

[[noreturn]] void fail_shape(const Safetensors& file, const StoredTensor& t,
                             std::span<const std::int64_t> wanted) {
  throw DataError(fmt::format("{}: tensor {} has shape {}, this model's is {}", file.file(),
                              in_quotes(t.name), shape_text(t.shape), shape_text(wanted)),
                  "config.json and the weights beside it must belong together");
}

// What is none of the three is refused when it is read.
DType float_type(const StoredTensor& t) {
  return t.type == StoredType::bf16 ? DType::bf16 : t.type == StoredType::f16 ? DType::f16 : DType::f32;
}

}  // namespace

TensorFile::TensorFile(const fs::path& path) : header_(Safetensors::open(path)), file_(path) {}

void TensorFile::read(const StoredTensor& t, std::uint64_t offset, std::span<std::byte> out) const {
  file_.read_at(t.file_offset + offset, out);
}

void TensorFile::read(const StoredTensor& t, std::int64_t first, std::span<float> out) const {
  const auto width = static_cast<std::size_t>(stored_bytes(t.type));
  if (t.type == StoredType::f32) {
    read(t, static_cast<std::uint64_t>(first) * width, std::as_writable_bytes(out));
  } else if (t.type == StoredType::bf16 || t.type == StoredType::f16) {
    staging_.resize(out.size() * width);
    read(t, static_cast<std::uint64_t>(first) * width, staging_);
    if (t.type == StoredType::bf16) {
      widen<bf16>(staging_, out);
    } else {
      widen<f16>(staging_, out);
    }
  } else {
    throw DataError(fmt::format("{}: tensor {} is {}, neither f32, bf16 nor f16", header_.file(),
                                in_quotes(t.name), stored_name(t.type)));
  }
  const auto bad = std::find_if(out.begin(), out.end(), [](float x) { return !std::isfinite(x); });
  QT_CHECK(bad == out.end(), DataError, "{}: tensor {}, element {}: not a finite number", header_.file(),
           in_quotes(t.name), first + (bad - out.begin()));
}

WeightsOf weights_of_name(std::string_view name) {
  if (name == "packed") return WeightsOf::packed;
  QT_CHECK(name == "master", ConfigError, "--weights {}: choose packed or master", name);
  return WeightsOf::master;
}

// --- checkpoints -----------------------------------------------------------------------------------------

CheckpointParams::CheckpointParams(const fs::path& checkpoint, const ModelParams& model, WeightsOf which,
                                   FormatId format)
    : file_(checkpoint / (which == WeightsOf::master ? kStateFile : kWeightsFile)),
      format_(format),
      model_(model) {
  const bool masters = which == WeightsOf::master;
  for (const Param& p : model.params) {
    Place place;
    place.values = &file_.header().get(masters ? "master." + p.name : p.name);
    if (!masters && p.group == ParamGroup::matrix && format != FormatId::none) {
      const std::int64_t codes[] = {code_bytes(format, p.elems())},
                         scales[] = {scale_count(format, p.elems())};
      place.values = &file_.header().get(p.name, DType::u8, codes);
      place.scales = &file_.header().get(p.name + ".absmax", DType::f32, scales);
    } else if (place.values->elems() != p.elems()) {
      const std::int64_t wanted[] = {p.N, p.K};
      fail_shape(file_.header(), *place.values, wanted);
    }
    places_.push_back(place);
  }
}

void CheckpointParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  const Place& place = places_[index];
  if (place.scales == nullptr) return file_.read(*place.values, first, out);
  const std::int64_t elems = model_.params[index].elems();
  for (std::size_t done = 0; done < out.size();) {
    const std::size_t count = std::min<std::size_t>(out.size() - done, kPieceElems);
    read_packed(place, elems, first + static_cast<std::int64_t>(done), out.subspan(done, count));
    done += count;
  }
}

// From the beginning of the block that holds `first` to the end of the one that holds the last element:
// scales and codes then begin where the format says that a range may.
void CheckpointParams::read_packed(const Place& place, std::int64_t elems, std::int64_t first,
                                   std::span<float> out) {
  dispatch_format(format_, [&]<class F>() {
    const std::int64_t begin = first / F::kBlockElems * F::kBlockElems;
    const std::int64_t end =
        std::min<std::int64_t>(elems, (first + static_cast<std::int64_t>(out.size()) + F::kBlockElems - 1) /
                                          F::kBlockElems * F::kBlockElems);
    codes_.resize(static_cast<std::size_t>(code_bytes(F::kId, end - begin)));
    scales_.resize(static_cast<std::size_t>(scale_count(F::kId, end - begin)));
    block_.resize(static_cast<std::size_t>(end - begin));
    file_.read(*place.values, static_cast<std::uint64_t>(code_bytes(F::kId, begin)),
               std::as_writable_bytes(std::span(codes_)));
    file_.read(*place.scales, begin / F::kBlockElems, std::span(scales_));
    F::dequantize(codes_.data(), scales_.data(), 0, std::span(block_));
    std::copy_n(block_.begin() + (first - begin), out.size(), out.begin());
  });
}

// Canonical weights of packed matrices are bf16, so that what is not packed decides.
DType CheckpointParams::type() const { return float_type(*places_[model_.roles.embedding].values); }

// --- Hugging Face folders --------------------------------------------------------------------------------

bool HfParams::is_there(const fs::path& folder) {
  return fs::exists(folder / kModelFile) || fs::exists(folder / kIndexFile);
}

HfParams::HfParams(const fs::path& folder, const ModelConfig& config, const ModelParams& model)
    : model_(model), tensors_(hf_tensors(config, model)), held_tensor_(kNoTensor) {
  std::map<std::string, Stored> found;
  const auto open = [&](const std::string& name) -> const TensorFile& {
    files_.push_back(std::make_unique<TensorFile>(folder / name));
    for (const StoredTensor& t : files_.back()->header().tensors()) {
      // OpenAI's own files lack the prefix.
      const bool bare =
          config.arch == "gpt" && !t.name.starts_with("transformer.") && t.name != "lm_head.weight";
      const std::string full = bare ? "transformer." + t.name : t.name;
      QT_CHECK(found.emplace(full, Stored{files_.back().get(), &t}).second, DataError,
               "{}: tensor {} is there twice", files_.back()->header().file(), in_quotes(t.name));
    }
    return *files_.back();
  };
  if (fs::exists(folder / kModelFile)) {
    open(kModelFile);
  } else {
    const std::string origin = (folder / kIndexFile).string();
    const Json index = read_json_file(folder / kIndexFile);
    QT_CHECK(index.is_object(), DataError, "{}: not a JSON object", origin);
    const Json& map = json_object(index, "weight_map", origin);
    std::set<std::string> names;
    for (const auto& [tensor, file] : map.items()) {
      const bool plain = file.is_string() && plain_file_name(file.get<std::string>());
      QT_CHECK(plain, DataError, "{}: field 'weight_map' gives tensor {} no file name", origin,
               in_quotes(tensor));
      names.insert(file.get<std::string>());
    }
    for (const std::string& name : names) open(name);
    for (auto it = map.begin(); it != map.end(); ++it) {
      QT_CHECK(std::any_of(files_.begin(), files_.end(),
                           [&](const auto& f) { return f->header().find(it.key()) != nullptr; }),
               DataError, "{}: tensor {} is in no file of the index", origin, in_quotes(it.key()));
    }
  }
  places_.resize(model.params.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const HfTensor& wanted = tensors_[i];
    const auto it = found.find(wanted.name);
    if (it == found.end()) {
      throw DataError(fmt::format("{}: tensor '{}' is missing", folder.string(), wanted.name),
                      "the folder must hold all weights of the model in its config.json, as safetensors");
    }
    const Stored stored = it->second;
    const std::vector<std::int64_t>& shape = stored.tensor->shape;
    const bool longer = wanted.params.size() == 1 && model.roles.positions == wanted.params.front() &&
                        shape.size() == 2 && shape[1] == wanted.shape[1] && shape[0] > wanted.shape[0];
    if (shape != wanted.shape && !longer) fail_shape(stored.file->header(), *stored.tensor, wanted.shape);
    stored_.push_back(stored);
    found.erase(it);
    std::int64_t row = 0;
    for (const std::size_t index : wanted.params) {
      places_[index] = {i, row};
      row += wanted.transposed || wanted.shape.size() == 2 ? model.params[index].N : model.params[index].K;
    }
    if (wanted.is_zero()) check_zero(i);
  }
  std::erase_if(found, [&](const auto& entry) { return hf_ignored(config, entry.first); });
  if (!found.empty()) {
    throw DataError(fmt::format("{}: tensor {} belongs to no part of this model", folder.string(),
                                in_quotes(found.begin()->first)),
                    "config.json and the weights beside it must belong together");
  }
}

void HfParams::check_zero(std::size_t tensor) {
  const Stored& s = stored_[tensor];
  std::vector<float> values(static_cast<std::size_t>(s.tensor->elems()));
  s.file->read(*s.tensor, 0, std::span(values));
  QT_CHECK(std::all_of(values.begin(), values.end(), [](float x) { return x == 0; }), DataError,
           "{}: tensor {} is not zero, but config.json says that there are no biases",
           s.file->header().file(), in_quotes(s.tensor->name));
}

void HfParams::hold(std::size_t tensor) {
  if (held_tensor_ == tensor) return;
  const Stored& s = stored_[tensor];
  held_tensor_ = kNoTensor;
  held_.resize(static_cast<std::size_t>(s.tensor->elems()));
  for (std::size_t done = 0; done < held_.size();) {
    const std::span<float> piece =
        std::span(held_).subspan(done, std::min<std::size_t>(held_.size() - done, kPieceElems));
    s.file->read(*s.tensor, static_cast<std::int64_t>(done), piece);
    done += piece.size();
  }
  held_tensor_ = tensor;
}

void HfParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  const Place& place = places_[index];
  const HfTensor& t = tensors_[place.tensor];
  const Stored& s = stored_[place.tensor];
  const std::int64_t K = model_.params[index].K;
  if (!t.transposed) {
    const std::int64_t before = t.shape.size() == 2 ? place.row * K : place.row;
    return s.file->read(*s.tensor, before + first, out);
  }
  hold(place.tensor);
  // Rows of ours are columns there: whole rows are read side by side, which is kinder to caches than one by
  // one.
  const std::int64_t width = t.shape[1], end = first + static_cast<std::int64_t>(out.size());
  const auto at = [&](std::int64_t n, std::int64_t k) {
    return held_[static_cast<std::size_t>(k * width + place.row + n)];
  };
  const std::int64_t whole_begin = std::min(end, (first + K - 1) / K * K),
                     whole_end = std::max(whole_begin, end / K * K);
  for (std::int64_t e = first; e < whole_begin; ++e)
    out[static_cast<std::size_t>(e - first)] = at(e / K, e % K);
  for (std::int64_t k = 0; k < K; ++k) {
    for (std::int64_t n = whole_begin / K; n < whole_end / K; ++n)
      out[static_cast<std::size_t>(n * K + k - first)] = at(n, k);
  }
  for (std::int64_t e = whole_end; e < end; ++e) out[static_cast<std::size_t>(e - first)] = at(e / K, e % K);
}

DType HfParams::type() const {
  const DType first = float_type(*stored_.front().tensor);
  const bool same = std::all_of(stored_.begin(), stored_.end(),
                                [&](const Stored& s) { return float_type(*s.tensor) == first; });
  return same ? first : DType::f32;
}

// --- rounding --------------------------------------------------------------------------------------------

float rounded_to(DType type, float x) {
  if (type == DType::bf16) return to_float(to_bf16(x));
  if (type == DType::f16) return to_float(to_f16(x));
  return x;
}

void RoundedParams::read(std::size_t index, std::int64_t first, std::span<float> out) {
  source_.read(index, first, out);
  if (type_ == DType::f32) return;
  for (float& x : out) x = rounded_to(type_, x);
}

}  // namespace qt

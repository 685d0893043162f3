#include "src/io/safetensors_writer.h"

#include <set>

#include "src/core/error.h"
#include "src/io/json.h"

namespace qt {
namespace {

std::string header_entry(const TensorSpec& spec, std::int64_t begin, std::int64_t end) {
  return fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                     Json(spec.name).dump(), stored_name(spec.type), fmt::join(spec.shape, ","), begin, end);
}

// Calls `emit` with the pieces of the header in order. Twice (once to measure, once to write) instead of one
// long string: a save must not allocate large blocks in the middle of a run.
template <class Emit>
std::int64_t emit_header(std::span<const TensorSpec> tensors, const Metadata& metadata, Emit&& emit) {
  std::string_view separator = "{";
  if (!metadata.empty()) {
    emit("{\"__metadata__\":" + Json(metadata).dump());
    separator = ",";
  }
  std::int64_t end = 0;
  for (const auto& spec : tensors) {
    const auto bytes = stored_bytes(spec.type, spec.shape);
    QT_CHECK(valid_tensor_name(spec.name), ShapeError, "{} cannot name a tensor in a file",
             in_quotes(spec.name));
    const std::int64_t begin = end;
    QT_CHECK(bytes && !__builtin_add_overflow(begin, *bytes, &end), ShapeError,
             "tensor {}: the shape {} is negative or too large to store", in_quotes(spec.name),
             fmt::format("[{}]", fmt::join(spec.shape, ", ")));
    emit(fmt::format("{}{}", separator, header_entry(spec, begin, end)));
    separator = ",";
  }
  emit(std::string(separator == "{" ? "{}" : "}"));
  return end;
}

struct Sizes {
  std::int64_t header_bytes;  // with padding, without the length before it
  std::int64_t data_bytes;
};

Sizes measure(std::span<const TensorSpec> tensors, const Metadata& metadata) {
  std::int64_t header = 0;
  const std::int64_t data = emit_header(tensors, metadata, [&](const std::string& piece) {
    header += static_cast<std::int64_t>(piece.size());
  });
  return {(header + 7) / 8 * 8, data};
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(OutputFile& out, std::vector<TensorSpec> tensors,
                                     const Metadata& metadata)
    : out_(out), tensors_(std::move(tensors)) {
  std::set<std::string_view> names;
  for (const auto& spec : tensors_) {
    QT_CHECK(names.insert(spec.name).second, ShapeError, "the tensor {} is listed twice",
             in_quotes(spec.name));
  }
  const Sizes sizes = measure(tensors_, metadata);
  const auto header_bytes = static_cast<std::uint64_t>(sizes.header_bytes);
  QT_CHECK(header_bytes <= Safetensors::kMaxHeaderBytes, ShapeError,
           "a header of {} bytes is more than the format allows", header_bytes);
  out_.write(std::as_bytes(std::span(&header_bytes, 1)));  // 8 bytes, little-endian
  const std::uint64_t begin = out_.bytes();
  emit_header(tensors_, metadata, [&](const std::string& piece) { out_.write(piece); });
  out_.write(std::string(header_bytes - (out_.bytes() - begin), ' '));
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (current_ < tensors_.size()) {
    const auto& spec = tensors_[current_];
    if (written_bytes_ < *stored_bytes(spec.type, spec.shape)) return;
    ++current_;
    written_bytes_ = 0;
  }
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  QT_CHECK(current_ < tensors_.size() && tensors_[current_].name == name, ShapeError,
           "bytes of tensor {} were given, but {} is next in the file", in_quotes(name),
           current_ < tensors_.size() ? in_quotes(tensors_[current_].name) : "nothing");
  write(bytes);
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  QT_CHECK(current_ < tensors_.size(), ShapeError, "{} bytes more than the tensors listed for {} hold",
           bytes.size(), in_quotes(out_.path().string()));
  const auto& spec = tensors_[current_];
  const std::int64_t left = *stored_bytes(spec.type, spec.shape) - written_bytes_;
  QT_CHECK(static_cast<std::uint64_t>(left) >= bytes.size(), ShapeError,
           "tensor {}: {} bytes were given where {} are left", in_quotes(spec.name), bytes.size(), left);
  out_.write(bytes);
  written_bytes_ += static_cast<std::int64_t>(bytes.size());
  skip_complete();
}

void SafetensorsWriter::finish() {
  QT_CHECK(current_ == tensors_.size(), ShapeError, "tensor {} is incomplete: {} bytes were written",
           in_quotes(tensors_[current_].name), written_bytes_);
}

}  // namespace qt

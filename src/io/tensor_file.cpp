#include "src/io/tensor_file.h"

#include <cstring>

#include "src/core/half.h"

namespace qt {

namespace {

template <class Half>
void widen(std::span<const std::byte> from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    Half half;
    std::memcpy(&half, from.data() + i * sizeof half, sizeof half);
    to[i] = to_float(half);
  }
}

}  // namespace

std::int64_t first_non_finite(StoredType type, std::span<const std::byte> bytes) {
  const std::size_t width = type == StoredType::f32                               ? 4
                            : type == StoredType::bf16 || type == StoredType::f16 ? 2
                                                                                  : 0;
  if (width == 0) return -1;
  // The exponent lies in the top 16 bits of every type; all ones mean not finite.
  const std::uint16_t exponent = type == StoredType::f16 ? 0x7C00 : 0x7F80;
  for (std::size_t at = 0; at < bytes.size(); at += width) {
    std::uint16_t top = 0;
    std::memcpy(&top, bytes.data() + at + (width - 2), sizeof top);
    if ((top & exponent) == exponent) return static_cast<std::int64_t>(at / width);
  }
  return -1;
}

TensorFile::TensorFile(const std::filesystem::path& path) : header_(Safetensors::open(path)), file_(path) {}

void TensorFile::read(const StoredTensor& t, std::uint64_t offset, std::span<std::byte> out) const {
  file_.read_at(t.file_offset + offset, out);
}

void TensorFile::read_elems(const StoredTensor& t, std::int64_t first, std::span<std::byte> out) const {
  read(t, static_cast<std::uint64_t>(first * stored_bytes(t.type)), out);
  const std::int64_t bad = first_non_finite(t.type, out);
  QT_CHECK(bad < 0, DataError, "{}: tensor {}, element {}: not a finite number", header_.file(),
           in_quotes(t.name), first + bad);
}

void TensorFile::read(const StoredTensor& t, std::int64_t first, std::span<float> out) const {
  const bool is_f32 = t.type == StoredType::f32, is_bf16 = t.type == StoredType::bf16;
  QT_CHECK(is_f32 || is_bf16 || t.type == StoredType::f16, DataError,
           "{}: tensor {} is {}, neither f32, bf16 nor f16", header_.file(), in_quotes(t.name),
           stored_name(t.type));
  if (is_f32) return read_elems(t, first, std::as_writable_bytes(out));
  staging_.resize(out.size() * static_cast<std::size_t>(stored_bytes(t.type)));
  read_elems(t, first, staging_);
  is_bf16 ? widen<bf16>(staging_, out) : widen<f16>(staging_, out);
}

}  // namespace qt

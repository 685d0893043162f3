// TensorFile: stored floats, read piece by piece. A file is read at offsets and not mapped, so that the process
// never holds more of a tensor than was asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "src/io/file.h"
#include "src/io/safetensors.h"

namespace qt {

// Index of the first NaN or infinity among f32, bf16 or f16; -1 where there is none, and for every other type.
// Reads bits: the bytes may lie at any address.
std::int64_t first_non_finite(StoredType type, std::span<const std::byte> bytes);

// A safetensors file with a checked header.
class TensorFile {
 public:
  explicit TensorFile(const std::filesystem::path& path);  // DataError
  const Safetensors& header() const { return header_; }
  // Bytes [offset, offset + out.size()) of a tensor.
  void read(const StoredTensor& t, std::uint64_t offset, std::span<std::byte> out) const;
  // Elements from `first` on, as they are stored, as many as fill out; DataError naming tensor and index for f32,
  // bf16 or f16 that is not finite.
  void read_elems(const StoredTensor& t, std::int64_t first, std::span<std::byte> out) const;
  // Elements [first, first + out.size()) of an f32, bf16 or f16 tensor, widened; DataError naming tensor and index
  // for what is not finite, and for another type.
  void read(const StoredTensor& t, std::int64_t first, std::span<float> out) const;

 private:
  Safetensors header_;
  InputFile file_;
  mutable std::vector<std::byte> staging_;
};

}  // namespace qt

// Writes a safetensors file (format: safetensors.h) front to back, without a second copy of any tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/file.h"
#include "src/io/safetensors.h"

namespace qt {

struct TensorSpec {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;
};

// Writes the header, then takes the tensors' bytes in the order of the list, in pieces of any size. The data
// begins at a multiple of 8; listing wide element types first keeps every tensor aligned to its own.
// Misuse (a name twice, bytes too many, bytes missing) is a ShapeError, a failing disk a DiskError.
class SafetensorsWriter {
 public:
  // `out` is new and stays the caller's, who calls out.finish() after finish().
  SafetensorsWriter(OutputFile& out, std::vector<TensorSpec> tensors, const Metadata& metadata = {});

  // The next bytes of the current tensor, which must be `name`. A piece never reaches into the next tensor.
  void write(std::string_view name, std::span<const std::byte> bytes);
  // Without the check of the name.
  void write(std::span<const std::byte> bytes);
  // Checks that every tensor is complete.
  void finish();

 private:
  void skip_complete();

  OutputFile& out_;
  std::vector<TensorSpec> tensors_;
  std::size_t current_ = 0;         // index of the tensor that the next byte belongs to
  std::int64_t written_bytes_ = 0;  // of the current tensor
};

}  // namespace qt

// Any bytes given to the safetensors reader are refused with a DataError, or accepted as tensors that cover
// the data exactly; then every byte of every tensor can be read and is found by name.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "src/core/error.h"
#include "src/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const auto file = qt::Safetensors::parse(bytes, "fuzz");
    std::uint64_t end = file.tensors().empty() ? size : file.tensors().front().file_offset;
    unsigned sum = 0;
    for (const auto& tensor : file.tensors()) {
      if (tensor.file_offset != end || file.find(tensor.name) != &tensor) std::abort();
      end += tensor.bytes;
      for (std::uint64_t i = 0; i < tensor.bytes; ++i) sum += std::to_integer<unsigned>(tensor.data[i]);
      if (static_cast<std::uint64_t>(tensor.elems() * qt::stored_bytes(tensor.type)) != tensor.bytes)
        std::abort();
    }
    if (end != size) std::abort();
    volatile unsigned keep = sum;
    (void)keep;
  } catch (const qt::DataError&) {
    return 0;
  }
  return 0;
}

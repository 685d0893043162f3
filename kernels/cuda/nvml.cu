#include "kernels/cuda/nvml.h"
#include "src/core/nvml_library.h"

namespace qt::cuda {

std::int64_t card_used_bytes(const char* pci_bus_id) {
  const nvml::Library library;
  if (library.start_status() != nvml::kSuccess) return -1;
  nvml::Handle card = nullptr;
  nvml::Memory memory;
  const bool answered = nvml::CardAt(library)(pci_bus_id, &card) && nvml::MemoryOf(library)(card, &memory);
  return answered ? static_cast<std::int64_t>(memory.used) : -1;
}

}  // namespace qt::cuda

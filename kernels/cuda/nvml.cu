#include <dlfcn.h>

#include "kernels/cuda/nvml.h"

namespace qt::cuda {

// Loaded by name: it comes with the driver, and a machine without one runs this program too.
std::int64_t card_used_bytes(const char* pci_bus_id) {
  // nvmlMemory_t, and nvmlReturn_t as a number: 0 is success.
  struct Memory {
    unsigned long long total = 0, free = 0, used = 0;
  };
  using Device = void*;
  void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return -1;
  const auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
  const auto find =
      reinterpret_cast<int (*)(const char*, Device*)>(dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
  const auto ask = reinterpret_cast<int (*)(Device, Memory*)>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
  const auto shutdown = reinterpret_cast<int (*)()>(dlsym(library, "nvmlShutdown"));
  std::int64_t used = -1;
  if (init != nullptr && find != nullptr && ask != nullptr && shutdown != nullptr && init() == 0) {
    Device device = nullptr;
    Memory memory;
    if (find(pci_bus_id, &device) == 0 && ask(device, &memory) == 0)
      used = static_cast<std::int64_t>(memory.used);
    shutdown();
  }
  dlclose(library);
  return used;
}

}  // namespace qt::cuda

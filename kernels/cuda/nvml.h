// What the driver's management library knows of a card without opening it. nvml.cu asks it; the simulator has
// a twin in kernels/sim/nvml.cpp.
#pragma once

#include <cstdint>

namespace qt::cuda {

// Bytes of the card's memory in use by anyone. -1 where the library is missing or does not say. pci_bus_id as
// cudaDeviceGetPCIBusId gives it. Never throws.
std::int64_t card_used_bytes(const char* pci_bus_id);

}  // namespace qt::cuda

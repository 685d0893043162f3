#include <cstdlib>

#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/nvml.h"
#include "kernels/cuda/runtime.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/units.h"

namespace qt::cuda {

namespace {

constexpr int kFirst = 0;
constexpr int kOldestMajor = 8;
// A context between this part and so many times of what is assumed is believed.
constexpr std::int64_t kLeastPart = 8, kMostAssumptions = 2;

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

[[noreturn]] void refuse_driver() {
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  if (driver == 0) {
    throw DeviceError(
        "there is no NVIDIA driver on this machine",
        "install the driver for the card (`nvidia-smi` shows it once it works), or use --device cpu");
  }
  throw DeviceError(
      fmt::format("the NVIDIA driver is too old: it serves CUDA {}, this qtrain is built for CUDA {}",
                  version_text(driver), version_text(runtime)),
      fmt::format("update the driver to one for CUDA {} or later, build qtrain with CUDA {}, or use "
                  "--device cpu",
                  version_text(runtime), version_text(driver)));
}

void require_card() {
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    refuse_driver();
  }
  if (result == cudaErrorNoDevice || (result == cudaSuccess && count == 0)) {
    cudaGetLastError();
    throw DeviceError(
        "there is no CUDA card on this machine, or none that this process may use",
        "`nvidia-smi` lists the cards, and CUDA_VISIBLE_DEVICES hides some; or use --device cpu");
  }
  check(result, "cudaGetDeviceCount");
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, kFirst), "cudaDeviceGetAttribute");
  return value;
}

std::int64_t free_bytes() {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<std::int64_t>(free);
}

}  // namespace

DeviceFacts probe_card() {
  require_card();
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, kFirst), "cudaGetDeviceProperties");
  if (properties.major < kOldestMajor) {
    throw DeviceError(
        fmt::format("the {} has compute capability {}.{}, and qtrain needs 8.0: bf16 tensor cores",
                    properties.name, properties.major, properties.minor),
        "use a card of the RTX 30 series, an A100 or a newer one, or --device cpu");
  }
  DeviceFacts facts;
  facts.name = properties.name;
  facts.sm = properties.major * 10 + properties.minor;
  facts.multiprocessors = properties.multiProcessorCount;
  facts.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  // Only what shows a picture has a watchdog for its kernels.
  facts.drives_display = attribute(cudaDevAttrKernelExecTimeout) != 0;
  char bus[32] = {};
  check(cudaDeviceGetPCIBusId(bus, sizeof bus, kFirst), "cudaDeviceGetPCIBusId");
  facts.pci_bus_id = bus;
  return facts;
}

OpenCard open_card(const Target& target) {
  OpenCard card;
  card.facts = probe_card();
  if (target.sm > card.facts.sm) {
    throw ConfigError(fmt::format("this run is planned for sm_{}, and the {} is sm_{}", target.sm,
                                  card.facts.name, card.facts.sm),
                      fmt::format("use --arch sm_{}", card.facts.sm));
  }
  card.used_bytes_before = card_used_bytes(card.facts.pci_bus_id.c_str());
  check(cudaSetDevice(kFirst), "cudaSetDevice");
  card.facts.free_bytes = free_bytes();  // opens the card where the line above did not
  if (!has_code_for_card()) {
    throw DeviceError(fmt::format("this build of qtrain has no code for the {}, which is sm_{}",
                                  card.facts.name, card.facts.sm),
                      hint_for(cudaErrorNoKernelImageForDevice));
  }
  return card;
}

void measure_context(OpenCard& card, const Target& target, std::int64_t own_bytes) {
  card.facts.free_bytes = free_bytes() + own_bytes;
  const std::int64_t used_bytes = card_used_bytes(card.facts.pci_bus_id.c_str());
  if (card.used_bytes_before < 0 || used_bytes < 0) return;
  const std::int64_t taken_bytes = used_bytes - card.used_bytes_before - own_bytes;
  const std::int64_t assumed_bytes = assumed_context_bytes(target);
  if (taken_bytes < 0 || taken_bytes > kMostAssumptions * assumed_bytes) {
    log_info(
        "opening the card changed what is in use of it by {}{}, which this run alone cannot have done (do "
        "other programs use it?): the plan goes on assuming {} for the driver and the libraries",
        taken_bytes < 0 ? "-" : "", format_bytes(std::abs(taken_bytes)), format_bytes(assumed_bytes));
    return;
  }
  if (taken_bytes < assumed_bytes / kLeastPart) return;  // this process had opened the card before
  card.facts.context_bytes = taken_bytes;
}

}  // namespace qt::cuda

#include "src/plan/machine.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string_view>
#include <thread>

#include "src/core/log.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"

namespace qt {

namespace {

constexpr std::int64_t kDisplayReserveBytes = 1 * kGiB;     // windows, and the driver's growth
constexpr std::int64_t kHeadlessReserveBytes = 256 * kMiB;  // the driver's growth
constexpr std::int64_t kAssumedCardBytes = 12 * kGiB;       // --device cuda without a card and without --vram
constexpr int kAssumedSm = 89;
// What NVIDIA has sold with tensor cores; cuda_target() refuses those that are too old, by name.
constexpr int kKnownSm[] = {70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

// The card that this program can use. Where it was built for cards but finds none, `why` says so.
std::optional<DeviceFacts> find_card(std::string& why) {
  try {
    return probe_device("cuda");
  } catch (const DeviceError& e) {
    why = e.what();
  } catch (const ConfigError&) {  // not built for cards
  }
  return std::nullopt;
}

// Free bytes where `path` is or will be; none where the system does not tell.
std::optional<std::int64_t> disk_free_bytes(std::filesystem::path path) {
  path = std::filesystem::absolute(path);
  while (!path.empty() && !std::filesystem::exists(path) && path.has_relative_path())
    path = path.parent_path();
  struct statvfs info {};
  if (statvfs(path.c_str(), &info) != 0) return std::nullopt;
  return static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize);
}

// What the run's own checkpoints hold: later ones take their place.
std::int64_t checkpoint_disk_bytes(const std::string& run_dir) {
  std::int64_t bytes = 0;
  std::error_code ignored;
  for (const Checkpoint& checkpoint : find_checkpoints(run_dir)) {
    for (const auto& file : std::filesystem::directory_iterator(checkpoint.path, ignored)) {
      const std::uintmax_t size = file.file_size(ignored);
      if (!ignored) bytes += static_cast<std::int64_t>(size);
    }
  }
  return bytes;
}

// None for "auto". "89" is "sm_89".
std::optional<int> sm_from_name(const std::string& name) {
  if (name == "auto") return std::nullopt;
  const std::string_view digits = std::string_view(name).substr(name.starts_with("sm_") ? 3 : 0);
  int sm = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), sm);
  const bool is_number = error == std::errc{} && stop == digits.data() + digits.size();
  if (is_number && std::find(std::begin(kKnownSm), std::end(kKnownSm), sm) != std::end(kKnownSm)) return sm;
  throw ConfigError(fmt::format("--arch {} is not known", name),
                    "use --arch auto, sm_80, sm_86, sm_89, sm_90 or sm_120");
}

Target card_target(const Options& o, int sm) {
  Target target = cuda_target(sm);
  target.gemm = o.gemm;
  return target;
}

}  // namespace

std::int64_t meminfo_bytes(std::string_view key, const std::filesystem::path& file) {
  std::ifstream info(file);
  for (std::string line; std::getline(info, line);) {
    std::istringstream words(line);
    std::string name;
    std::int64_t kib = 0;
    if (words >> name >> kib && name.ends_with(':') &&
        std::string_view(name).substr(0, name.size() - 1) == key)
      return kib * kKiB;
  }
  return 0;
}

Target target_from_options(const Options& o) {
  const std::optional<int> named_sm = sm_from_name(o.arch);
  std::string why;
  std::optional<DeviceFacts> card;
  if (o.device != DeviceKind::cpu) card = find_card(why);
  if (o.device == DeviceKind::cpu || (!o.device && !card)) {
    if (!why.empty()) log_info("the processor is used: {}", why);
    const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    QT_CHECK(o.threads >= 0 && o.threads <= 1024, ConfigError, "--threads must be 1 to 1024, got {}",
             o.threads);
    return cpu_target(o.threads > 0 ? static_cast<int>(o.threads) : cores);
  }
  return card_target(o, named_sm ? *named_sm : card ? card->sm : kAssumedSm);
}

Limits limits_from_options(const Options& o, const Target& target) {
  Limits limits;
  if (target.kind == DeviceKind::cuda) {
    std::string why;
    const std::optional<DeviceFacts> card = find_card(why);
    limits.device_capped = o.vram_bytes > 0;
    limits.device_assumed = !card && !limits.device_capped;
    limits.device_bytes = card ? card->total_bytes : limits.device_capped ? o.vram_bytes : kAssumedCardBytes;
    if (limits.device_capped) limits.device_bytes = std::min(limits.device_bytes, o.vram_bytes);
    limits.reserve_bytes = card && !card->drives_display ? kHeadlessReserveBytes : kDisplayReserveBytes;
    if (card) limits.device_name = card->name;
  } else {
    limits.device_bytes = o.vram_bytes;
  }
  limits.host_bytes = o.ram_bytes > 0 ? o.ram_bytes : meminfo_bytes("MemAvailable");
  limits.disk_bytes = disk_free_bytes(o.out);
  if (limits.disk_bytes && std::filesystem::is_directory(o.out))
    *limits.disk_bytes += checkpoint_disk_bytes(o.out);
  return limits;
}

std::optional<DeviceFacts> device_here() {
  std::string why;
  return find_card(why);
}

Target target_with_card(const Options& o, const Card& card) {
  if (const std::optional<int> named = sm_from_name(o.arch); named && *named != card.sm) {
    throw ConfigError(fmt::format("--arch {} and --card {}, which is sm_{}, exclude each other", o.arch,
                                  card.name, card.sm),
                      "leave --arch out");
  }
  return card_target(o, card.sm);
}

Limits limits_with_card(const Options& o, const Card& card) {
  Limits limits;
  limits.device_capped = o.vram_bytes > 0;
  limits.device_bytes = limits.device_capped ? std::min(o.vram_bytes, card.memory_bytes) : card.memory_bytes;
  limits.reserve_bytes = kDisplayReserveBytes;
  limits.device_name = card.driver_name;
  limits.host_bytes = o.ram_bytes;
  return limits;
}

void adopt_facts(const DeviceFacts& facts, Target& target, Limits& limits) {
  if (facts.context_bytes > 0) {
    target.context_bytes = facts.context_bytes;
    target.context_measured = true;
  }
  // What others hold of the card is not ours; the context is counted as ours, in a line of the plan.
  if (facts.free_bytes > 0)
    limits.device_bytes = std::min(limits.device_bytes, facts.free_bytes + target.context_bytes);
}

std::unique_ptr<Backend> open_backend(BackendFactory make_backend, const Target& target) {
  return make_backend(target.kind == DeviceKind::cuda ? "cuda" : "cpu", target);
}

}  // namespace qt

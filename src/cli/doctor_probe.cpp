#include "src/cli/doctor_probe.h"

#include <linux/magic.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <sstream>
#include <thread>
#include <vector>

#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/core/rng.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"
#include "src/plan/machine.h"
#include "src/plan/remedies.h"

namespace qt {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kCopiedBytes = 256 * kMiB;
// As much as a save writes, within bounds: enough to be measured, and not for long.
constexpr std::int64_t kLeastWrittenBytes = 16 * kMiB, kMostWrittenBytes = 512 * kMiB;
constexpr std::int64_t kPieceBytes = 4 * kMiB;  // of a file, written at once
constexpr std::int64_t kPinnedPieceBytes = 512 * kMiB;
constexpr int kRounds = 3;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string processor_name(const fs::path& proc) {
  std::ifstream in(proc / "cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) return {};
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? std::string() : line.substr(begin);
  }
  return {};
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  ..." -> "550.54.14"
std::string driver_version() {
  std::istringstream words(first_line("/proc/driver/nvidia/version"));
  for (std::string word; words >> word;) {
    const bool is_version =
        word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos;
    if (is_version) return word;
  }
  return {};
}

struct Kind {
  unsigned long magic;
  const char* name;
  bool memory, remote;
};
constexpr unsigned long kCifs = 0xFF534D42, kSmb2 = 0xFE534D42, kXfs = 0x58465342, kZfs = 0x2FC12FC1;
constexpr Kind kKinds[] = {
    {TMPFS_MAGIC, "tmpfs", true, false},
    {RAMFS_MAGIC, "ramfs", true, false},
    {NFS_SUPER_MAGIC, "nfs", false, true},
    {SMB_SUPER_MAGIC, "smb", false, true},
    {kCifs, "cifs", false, true},
    {kSmb2, "smb", false, true},
    {V9FS_MAGIC, "9p", false, true},
    {FUSE_SUPER_MAGIC, "fuse", false, true},
    {EXT4_SUPER_MAGIC, "ext4", false, false},
    {BTRFS_SUPER_MAGIC, "btrfs", false, false},
    {F2FS_SUPER_MAGIC, "f2fs", false, false},
    {OVERLAYFS_SUPER_MAGIC, "overlay", false, false},
    {kXfs, "xfs", false, false},
    {kZfs, "zfs", false, false},
};

// The folder itself, or what is there of the path to it.
fs::path existing(const fs::path& folder) {
  fs::path at = fs::absolute(folder).lexically_normal();
  while (!fs::exists(at) && at.has_relative_path()) at = at.parent_path();
  return at;
}

void look_at_card(const Options& o, CardFacts& card) {
  card.wanted = o.device == DeviceKind::cuda;
  card.unwanted = o.device == DeviceKind::cpu;
  if (card.unwanted) return;
  try {
    card.device = probe_device("cuda");
  } catch (const DeviceError& e) {
    card.why_not = e.what();
  } catch (const ConfigError&) {
    card.built_without = true;
  }
  if (card.device) card.driver = driver_version();
}

}  // namespace

std::int64_t pinnable_bytes(Backend& backend, std::int64_t wanted) {
  std::vector<std::unique_ptr<MemoryRegion>> held;
  std::int64_t pinned = 0;
  try {
    while (pinned < wanted) {
      const std::int64_t piece = std::min(kPinnedPieceBytes, wanted - pinned);
      held.push_back(backend.allocate(Space::host, piece));
      if (held.back()->pageable()) break;
      pinned += piece;
    }
  } catch (const FitError&) {  // that is the answer
  }
  return pinned;
}

CopyRates measure_copies(Backend& backend, std::int64_t bytes) {
  const auto device = backend.allocate(Space::device, 2 * bytes),
             host = backend.allocate(Space::host, 2 * bytes);
  const auto view = [&](const std::unique_ptr<MemoryRegion>& region, std::int64_t half, Space space) {
    return TensorView(region->base() + half * bytes, DType::u8, {bytes}, space);
  };
  const TensorView from = view(host, 0, Space::host), to = view(device, 0, Space::device);
  const TensorView back_from = view(device, 1, Space::device), back_to = view(host, 1, Space::host);
  // The first copy pays for pages and for a link that wakes up; of the rest the fastest is the link's.
  const auto rate = [&](std::int64_t moved, const std::function<void()>& copies) {
    double best = 0;
    for (int round = 0; round <= kRounds; ++round) {
      const double s = seconds_of([&] {
        copies();
        backend.synchronize();
      });
      if (round > 0 && s > 0) best = std::max(best, static_cast<double>(moved) / s);
    }
    return best;
  };
  CopyRates rates{.bytes = bytes};
  rates.in = rate(bytes, [&] { backend.copy(from, to, Stream::copy_in); });
  rates.out = rate(bytes, [&] { backend.copy(back_from, back_to, Stream::copy_out); });
  rates.both = rate(2 * bytes, [&] {
    backend.copy(from, to, Stream::copy_in);
    backend.copy(back_from, back_to, Stream::copy_out);
  });
  return rates;
}

DiskFacts look_at_disk(const fs::path& folder, std::int64_t bytes, FileSystem& fs) {
  DiskFacts facts;
  facts.folder = folder.string();
  const fs::path place = existing(folder);
  if (fs::exists(place) && !fs::is_directory(place)) {
    facts.error = fmt::format("'{}' is no folder", place.string());
    return facts;
  }
  struct statfs info {};
  if (statfs(place.c_str(), &info) == 0) {
    const auto magic = static_cast<unsigned long>(static_cast<std::uint32_t>(info.f_type));
    const auto* const kind =
        std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return k.magic == magic; });
    if (kind != std::end(kKinds)) {
      facts.filesystem = kind->name;
      facts.is_memory = kind->memory;
      facts.is_remote = kind->remote;
    }
  }
  const std::int64_t free = fs.free_bytes(place);
  if (free >= 0) facts.free_bytes = free;
  // A twentieth of what is free at most: other programs must not run out of it meanwhile.
  bytes = std::min(bytes, free >= 0 ? free / 20 : bytes) / kPieceBytes * kPieceBytes;
  if (bytes <= 0 && free >= 0) {
    facts.error = fmt::format("'{}' has {} free", place.string(), format_bytes(free));
    return facts;
  }
  // Not zeros: some systems store those for nothing.
  std::vector<std::uint32_t> noise(static_cast<std::size_t>(kPieceBytes) / sizeof(std::uint32_t));
  const RngStream rng{.seed = 1, .purpose = RngPurpose::sample, .stream = 0};
  for (std::size_t i = 0; i < noise.size(); ++i) noise[i] = rng_u32(rng, i);
  const fs::path file = place / fmt::format(".qtrain-doctor-{}", ::getpid());
  try {
    facts.write_s = seconds_of([&] {
      OutputFile out(fs, file, OutputFile::Existing::replace);
      for (std::int64_t done = 0; done < bytes; done += kPieceBytes) {
        noise.front() = static_cast<std::uint32_t>(done / kPieceBytes);
        out.write(std::as_bytes(std::span(noise)));
      }
      out.finish();
    });
    facts.written_bytes = bytes;
  } catch (const Error& e) {
    facts.error = e.what();
  }
  fs.unlink(file);
  return facts;
}

HostFacts look_at_host(const Target& target, const fs::path& proc, const fs::path& groups) {
  HostFacts facts;
  facts.processor = processor_name(proc);
  const Target here = target.kind == DeviceKind::cpu
                          ? target
                          : cpu_target(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  facts.threads = here.threads;
  facts.native_bf16 = here.native_bf16;
  facts.total_bytes = meminfo_bytes("MemTotal", proc / "meminfo");
  facts.available_bytes = meminfo_bytes("MemAvailable", proc / "meminfo");
  facts.swap_used_bytes =
      meminfo_bytes("SwapTotal", proc / "meminfo") - meminfo_bytes("SwapFree", proc / "meminfo");
  // The second version's file, then the first's; "max" and the first's largest number are no limits.
  for (const fs::path& file : {groups / "memory.max", groups / "memory/memory.limit_in_bytes"}) {
    std::ifstream in(file);
    std::int64_t limit = 0;
    if (in >> limit && limit > 0) {
      facts.group_limit_bytes = limit;
      break;
    }
  }
  facts.under_wsl = first_line(proc / "version").find("icrosoft") != std::string::npos;
  return facts;
}

Checkup examine(const Options& options, BackendFactory make_backend, FileSystem& fs) {
  PlanRequest request{.options = options};
  Options& o = request.options;
  adopt_named_weights(o);
  check_options(o);
  Checkup c;
  look_at_card(o, c.card);
  Target& target = request.target = target_from_options(o);
  request.limits = limits_from_options(o, target);
  c.host = look_at_host(target);

  std::unique_ptr<Backend> backend;
  const bool on_card = target.kind == DeviceKind::cuda;
  if (!on_card || c.card.device) {
    try {
      backend = open_backend(make_backend, target);
      adopt_facts(backend->device(), target, request.limits);
      if (on_card) c.card.device = backend->device();
    } catch (const Error& e) {
      if (e.code() != ExitCode::device && e.code() != ExitCode::no_fit) throw;
      c.copies_error = e.what();
    }
  }
  request.vocab_size = RunData(o).expected_vocab_size();
  c.plan = plan_run(request);
  c.limits = request.limits;
  propose_changes(c.plan, request, remedy_scope(o));
  if (backend) {
    // Small enough for what is free, of which the copies take twice as much on either side.
    std::int64_t room = c.host.available_bytes;
    if (on_card && c.card.device->free_bytes > 0) room = std::min(room, c.card.device->free_bytes);
    const std::int64_t bytes = std::min(kCopiedBytes, room / 8);
    try {
      if (bytes > 0) c.copies = measure_copies(*backend, bytes);
      const bool host_fits =
          std::all_of(c.plan.verdicts.begin(), c.plan.verdicts.end(),
                      [](const Verdict& v) { return v.fits || v.resource != Resource::host; });
      if (on_card && host_fits && c.plan.rehearsed.host.bytes > 0)
        c.pinned_bytes = pinnable_bytes(*backend, c.plan.rehearsed.host.bytes);
    } catch (const Error& e) {
      if (e.code() != ExitCode::device && e.code() != ExitCode::no_fit) throw;
      c.copies_error = e.what();
    }
  }
  if (c.card.device && !c.card.unwanted) {
    const Nvml nvml(c.card.device->pci_bus_id);
    c.card.nvml_why_not = nvml.found() ? std::string() : nvml.why_not();
    c.card.description = nvml.describe();
    c.card.reading = nvml.read();
  }
  c.disk =
      look_at_disk(o.out, std::clamp(c.plan.checkpoint_bytes, kLeastWrittenBytes, kMostWrittenBytes), fs);
  if (const auto holder = lock_holder(o.out)) c.run_holder = *holder;
  return c;
}

}  // namespace qt

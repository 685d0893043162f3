// What `qtrain doctor` makes of facts, and how it finds them.
#include <filesystem>
#include <functional>
#include <memory>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "src/cli/doctor.h"
#include "src/cli/doctor_probe.h"
#include "src/core/units.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

// A card and a machine with nothing to complain about.
Checkup healthy() {
  Checkup c;
  c.host = {
      .processor = "Processor 9000", .threads = 8, .total_bytes = 32 * kGiB, .available_bytes = 28 * kGiB};
  c.card.device = DeviceFacts{.name = "NVIDIA GeForce RTX 4070",
                              .sm = 89,
                              .multiprocessors = 46,
                              .total_bytes = 12 * kGiB,
                              .free_bytes = 12 * kGiB - 100 * kMiB};
  c.card.description = {.limit_watts = 200,
                        .default_limit_watts = 200,
                        .pcie_generation = 4,
                        .pcie_width = 16,
                        .most_pcie_generation = 4,
                        .most_pcie_width = 16};
  c.card.reading.celsius = 40;
  c.card.reading.throttle.emplace();
  c.copies = CopyRates{.in = 25e9, .out = 25e9, .both = 40e9, .bytes = 256 * kMiB};
  c.pinned_bytes = 8 * kGiB;
  c.disk = {.folder = "runs/a",
            .filesystem = "ext4",
            .free_bytes = 500 * kGiB,
            .written_bytes = 512 * kMiB,
            .write_s = 0.5};
  c.plan.config.target = cuda_target(89);
  c.plan.rehearsed.host.bytes = 8 * kGiB;
  c.plan.rehearsed.optimizer_step.host_to_device_bytes = 5e9;
  c.plan.rehearsed.optimizer_step.device_to_host_bytes = 5e9;
  c.plan.checkpoint_bytes = 10 * kGiB;
  c.plan.verdicts = {
      {.resource = Resource::device, .needed_bytes = 8 * kGiB, .available_bytes = 11 * kGiB, .fits = true}};
  return c;
}

TEST(Doctor, FindsNothingWrongWithAHealthyMachine) {
  const auto findings = judge(healthy());
  for (const Finding& f : findings) {
    EXPECT_EQ(f.severity, Severity::good) << f.text;
    EXPECT_TRUE(f.advice.empty()) << f.text;
  }
  EXPECT_EQ(exit_code_of(findings), ExitCode::ok);
  const std::string text = findings_text(findings);
  for (const char* word : {"RTX 4070", "PCIe 4.0 x16", "power limit 200 W", "25.0 GB/s to the device",
                           "a step's paging takes 0.4 s", "1.07 GB/s written", "0 problems, 0 notes"}) {
    EXPECT_NE(text.find(word), std::string::npos) << word << " in\n" << text;
  }
}

struct Ill {
  const char* name;
  std::function<void(Checkup&)> change;
  Severity severity;
  const char* area;
  const char* says;
  const char* advises;
  ExitCode code = ExitCode::ok;
};

// Each ailment alone is one finding, with what to do.
TEST(Doctor, NamesEachAilmentAndWhatToDo) {
  const Ill ills[] = {
      {"no card", [](Checkup& c) { c.card = {.wanted = true, .why_not = "there is no NVIDIA driver"}; },
       Severity::problem, "card", "no NVIDIA driver", "--device cpu", ExitCode::device},
      {"no card asked for", [](Checkup& c) { c.card = {.why_not = "there is no NVIDIA driver"}; },
       Severity::note, "card", "the processor is used", "install"},
      {"a build without cards", [](Checkup& c) { c.card = {.wanted = true, .built_without = true}; },
       Severity::problem, "card", "without the CUDA toolkit", "nvcc", ExitCode::device},
      {"a full card",
       [](Checkup& c) {
         c.card.device->free_bytes = 6 * kGiB;
         c.card.description.processes = {{{.pid = 77, .name = "game", .bytes = 5 * kGiB}, {.pid = 78}}};
       },
       Severity::note, "card", "held by game (process 77, 5.0 GiB), unknown (process 78)",
       "end those programs"},
      {"a narrow slot",
       [](Checkup& c) { c.card.description.pcie_width = 4, c.copies->in = c.copies->out = 6e9; },
       Severity::note, "card", "PCIe 4.0 x4, of PCIe 4.0 x16", "slot next to the processor"},
      {"a slow link", [](Checkup& c) { c.copies->out = 9e9; }, Severity::note, "copies",
       "far below the link's 31.5", "another program"},
      {"a capped card", [](Checkup& c) { c.card.description.limit_watts = 150; }, Severity::note, "card",
       "power limit 150 W, 200 W as sold", "nvidia-smi -pl 200"},
      {"a hot card", [](Checkup& c) { c.card.reading.celsius = 88; }, Severity::note, "card", "88 degrees",
       "air"},
      {"a throttled card",
       [](Checkup& c) {
         c.card.reading.throttle = {{"heat", "power limit"}};
       },
       Severity::note, "card", "held back: heat, power limit", "nvidia-smi -q"},
      {"no NVML", [](Checkup& c) { c.card.nvml_why_not = "no libnvidia-ml.so.1", c.card.description = {}; },
       Severity::note, "card", "not known: no libnvidia-ml", "energy is unknown"},
      {"too little to pin", [](Checkup& c) { c.pinned_bytes = 3 * kGiB; }, Severity::problem, "memory",
       "only 3.0 GiB of the 8.0 GiB", "bf16-sr", ExitCode::no_fit},
      {"too little to pin under WSL", [](Checkup& c) { c.pinned_bytes = 3 * kGiB, c.host.under_wsl = true; },
       Severity::problem, "memory", "only 3.0 GiB", ".wslconfig", ExitCode::no_fit},
      {"a container", [](Checkup& c) { c.host.group_limit_bytes = 16 * kGiB; }, Severity::note, "memory",
       "16.0 GiB", "--ram 17179869184"},
      {"swap", [](Checkup& c) { c.host.swap_used_bytes = 4 * kGiB; }, Severity::note, "memory", "4.0 GiB",
       "close"},
      {"a broken disk", [](Checkup& c) { c.disk = {.error = "cannot write 'x': Read-only file system"}; },
       Severity::problem, "disk", "Read-only", "--out", ExitCode::disk},
      {"a slow disk", [](Checkup& c) { c.disk.write_s = 20; }, Severity::note, "disk", "0.03 GB/s",
       "faster disk"},
      {"a disk of memory", [](Checkup& c) { c.disk.filesystem = "tmpfs", c.disk.is_memory = true; },
       Severity::note, "disk", "tmpfs is memory", "--out"},
      {"a remote disk", [](Checkup& c) { c.disk.filesystem = "9p", c.disk.is_remote = true; }, Severity::note,
       "disk", "on 9p", "/home"},
      {"a run that does not fit",
       [](Checkup& c) {
         c.plan.verdicts = {{.resource = Resource::device,
                             .needed_bytes = 13 * kGiB,
                             .available_bytes = 11 * kGiB,
                             .fits = false}};
         c.plan.changes = {{.options = "--ckpt-activations", .cost = "time"}};
       },
       Severity::problem, "plan", "device: 13.0 GiB needed of 11.0 GiB: does not fit", "--ckpt-activations",
       ExitCode::no_fit},
      {"copies that fail", [](Checkup& c) { c.copies.reset(), c.copies_error = "the card fell off"; },
       Severity::problem, "copies", "fell off", "card", ExitCode::device},
      {"a run that goes on", [](Checkup& c) { c.run_holder = 4711; }, Severity::note, "run", "process 4711",
       "continues"},
  };
  for (const Ill& ill : ills) {
    SCOPED_TRACE(ill.name);
    Checkup c = healthy();
    ill.change(c);
    int found = 0;
    for (const Finding& f : judge(c)) {
      if (f.severity == Severity::good) continue;
      ++found;
      EXPECT_EQ(f.severity, ill.severity);
      EXPECT_EQ(f.area, ill.area);
      EXPECT_NE(f.text.find(ill.says), std::string::npos) << f.text;
      EXPECT_NE(f.advice.find(ill.advises), std::string::npos) << f.advice;
      EXPECT_EQ(f.code, ill.code);
    }
    EXPECT_EQ(found, 1);
    EXPECT_EQ(exit_code_of(judge(c)), ill.code);
  }
}

// Readings that the library did not give are left out, and never shown as zeros.
TEST(Doctor, SaysNothingOfWhatIsNotKnown) {
  Checkup c = healthy();
  c.card.description = {};
  c.card.reading = {};
  c.copies.reset();
  c.pinned_bytes.reset();
  c.disk.free_bytes.reset();
  c.disk.written_bytes = 0;
  const std::string text = findings_text(judge(c));
  for (const char* word : {" 0 W", "PCIe", "degrees", "GB/s"})
    EXPECT_EQ(text.find(word), std::string::npos) << word << " in\n" << text;
  EXPECT_NE(text.find("0 problems, 0 notes"), std::string::npos) << text;
}

TEST(Doctor, JsonHasTheKeysThatProgramsRelyOn) {
  Checkup c = healthy();
  c.host.processor = "bad \xFF byte";  // what a file may hold
  c.card.reading.celsius = 90;
  const auto json = nlohmann::json::parse(findings_json(judge(c)));
  EXPECT_EQ(json["problems"], 0);
  EXPECT_EQ(json["notes"], 1);
  ASSERT_GT(json["findings"].size(), 3u);
  for (const auto& f : json["findings"]) {
    EXPECT_EQ(f.size(), 4u);
    for (const char* key : {"severity", "area", "text", "advice"}) EXPECT_TRUE(f[key].is_string()) << key;
  }
}

TEST(Doctor, KnowsLinks) {
  EXPECT_NEAR(pcie_link_bytes_s(4, 16), 31.5e9, 0.05e9);
  EXPECT_NEAR(pcie_link_bytes_s(3, 4), 3.94e9, 0.01e9);
  EXPECT_NEAR(pcie_link_bytes_s(1, 1), 0.25e9, 1);
  EXPECT_EQ(pcie_link_bytes_s(0, 16), 0);
  EXPECT_EQ(pcie_link_bytes_s(99, 16), 0);
}

TEST(DoctorProbe, MeasuresCopiesThatReallyHappen) {
  const auto backend = make_backend("cpu", cpu_target(1));
  const CopyRates rates = measure_copies(*backend, 4 * kMiB);
  EXPECT_EQ(rates.bytes, 4 * kMiB);
  for (const double rate : {rates.in, rates.out, rates.both}) {
    EXPECT_GT(rate, 1e7);
    EXPECT_LT(rate, 1e13);
  }
}

TEST(DoctorProbe, LeavesNothingOnTheDiskAndMakesNoFolder) {
  const TempDir dir;
  const std::filesystem::path folder(dir / ".");
  const DiskFacts facts = look_at_disk(folder / "not/yet", 8 * kMiB);
  EXPECT_EQ(facts.error, "");
  EXPECT_EQ(facts.written_bytes, 8 * kMiB);
  EXPECT_GT(facts.write_s, 0);
  EXPECT_GT(facts.free_bytes.value_or(0), 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder)) << "the file is gone";
}

TEST(DoctorProbe, SaysThatAFileIsNoFolder) {
  const TempDir dir;
  put(dir / "file", "x");
  EXPECT_NE(look_at_disk(dir / "file/run", 8 * kMiB).error.find("is no folder"), std::string::npos);
  EXPECT_NE(look_at_disk(dir / "file", 8 * kMiB).error.find("is no folder"), std::string::npos);
}

TEST(DoctorProbe, SaysWhatTheDiskSaidWhicheverOperationFails) {
  const TempDir dir;
  const std::filesystem::path folder(dir / ".");
  FaultFs counting;
  look_at_disk(folder, 8 * kMiB, counting);
  const std::int64_t operations = counting.operations();
  ASSERT_GE(operations, 4);
  int errors = 0;
  for (std::int64_t at = 0; at < operations; ++at) {
    FaultFs failing(Fault::fail_once, at, EIO);
    const DiskFacts facts = look_at_disk(folder, 8 * kMiB, failing);
    errors += facts.error.empty() ? 0 : 1;
    EXPECT_EQ(facts.error.empty(), facts.written_bytes > 0) << at;
  }
  EXPECT_GE(errors, 3) << "opening, writing and syncing at least";
}

TEST(DoctorProbe, ReadsAMachinesFilesAndAnyRubbishInTheirPlace) {
  const TempDir dir;
  const std::filesystem::path proc(dir / "proc"), groups(dir / "cgroup");
  std::filesystem::create_directories(proc);
  std::filesystem::create_directories(groups);
  put(proc / "meminfo",
      "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"
      "SwapTotal:       4000000 kB\nSwapFree:        1000000 kB\n");
  put(proc / "cpuinfo", "processor\t: 0\nmodel name\t: Some Processor\n");
  put(proc / "version", "Linux version 5.15.90.1-microsoft-standard-WSL2\n");
  put(groups / "memory.max", "4000000000\n");
  const HostFacts facts = look_at_host(cpu_target(3), proc, groups);
  EXPECT_EQ(facts.processor, "Some Processor");
  EXPECT_EQ(facts.threads, 3);
  EXPECT_EQ(facts.total_bytes, 16'000'000 * kKiB);
  EXPECT_EQ(facts.available_bytes, 8'000'000 * kKiB);
  EXPECT_EQ(facts.swap_used_bytes, 3'000'000 * kKiB);
  EXPECT_EQ(facts.group_limit_bytes, 4'000'000'000);
  EXPECT_TRUE(facts.under_wsl);

  put(proc / "meminfo", "MemTotal\n\xFF\xFE: kB\n");
  put(proc / "cpuinfo", "model name\n");
  put(groups / "memory.max", "max\n");
  const HostFacts rubbish = look_at_host(cpu_target(1), proc, groups);
  EXPECT_EQ(rubbish.total_bytes, 0);
  EXPECT_EQ(rubbish.processor, "");
  EXPECT_FALSE(rubbish.group_limit_bytes.has_value());
  const HostFacts nothing = look_at_host(cpu_target(1), proc / "none", groups / "none");
  EXPECT_EQ(nothing.available_bytes, 0);
}

}  // namespace
}  // namespace qt::test

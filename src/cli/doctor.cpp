#include "src/cli/doctor.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include <nlohmann/json.hpp>

#include "src/core/units.h"
#include "src/plan/remedies.h"

namespace qt {

namespace {

// Copies of megabytes from pinned memory reach four fifths of a link's raw rate (src/meter/cards.cpp); far
// below that something is in the way.
constexpr double kSlowLinkShare = 0.55;
constexpr double kHotCelsius = 83;  // where consumer cards begin to slow down
// Of others' programs on the card: less is a desktop's.
constexpr std::int64_t kMuchOfOthersBytes = 300 * kMiB;
constexpr std::int64_t kMuchSwapBytes = 1 * kGiB;
// Saving may take 1 % of the time: with longer saves a power cut loses more than a night.
constexpr double kLongSaveSeconds = 5 * 60;
constexpr std::size_t kMostProcesses = 4;

class Judge {
 public:
  explicit Judge(const Checkup& c) : c_(c) {}

  std::vector<Finding> run() {
    processor();
    memory();
    card();
    copies();
    disk();
    plan();
    run_folder();
    return std::move(findings_);
  }

 private:
  void good(const char* area, std::string text) {
    findings_.push_back({.severity = Severity::good, .area = area, .text = std::move(text)});
  }
  void note(const char* area, std::string text, std::string advice) {
    findings_.push_back(
        {.severity = Severity::note, .area = area, .text = std::move(text), .advice = std::move(advice)});
  }
  void problem(const char* area, ExitCode code, std::string text, std::string advice) {
    findings_.push_back({.severity = Severity::problem,
                         .area = area,
                         .text = std::move(text),
                         .advice = std::move(advice),
                         .code = code});
  }

  bool on_card() const { return c_.plan.config.target.kind == DeviceKind::cuda; }

  void processor() {
    const HostFacts& h = c_.host;
    good("processor",
         fmt::format("{}, {} thread{}{}", h.processor.empty() ? "unknown" : h.processor, h.threads,
                     h.threads == 1 ? "" : "s", h.native_bf16 ? ", bf16 instructions" : ""));
  }

  void memory() {
    const HostFacts& h = c_.host;
    good("memory",
         fmt::format("{} of {} available", format_bytes(h.available_bytes), format_bytes(h.total_bytes)));
    if (h.group_limit_bytes && *h.group_limit_bytes < h.total_bytes) {
      note("memory",
           fmt::format("this container may use {} of it, which the plan does not know",
                       format_bytes(*h.group_limit_bytes)),
           fmt::format("give the plan the same limit: --ram {}", *h.group_limit_bytes));
    }
    if (h.swap_used_bytes >= kMuchSwapBytes) {
      note("memory", fmt::format("{} are swapped out", format_bytes(h.swap_used_bytes)),
           "close what is not needed: a run that is swapped out is slower by orders");
    }
    if (!c_.pinned_bytes) return;
    if (*c_.pinned_bytes >= c_.plan.rehearsed.host.bytes) {
      good("memory", fmt::format("{} can be pinned, all that the run pages", format_bytes(*c_.pinned_bytes)));
    } else {
      problem("memory", ExitCode::no_fit,
              fmt::format("only {} of the {} that the run pages can be pinned",
                          format_bytes(*c_.pinned_bytes), format_bytes(c_.plan.rehearsed.host.bytes)),
              h.under_wsl ? "WSL pins about half of its memory: raise `memory=` in .wslconfig, or use "
                            "--master bf16-sr"
                          : "close what holds memory, or use --master bf16-sr");
    }
  }

  void card() {
    const CardFacts& card = c_.card;
    if (card.unwanted) return;
    if (!card.device) {
      const std::string why =
          card.built_without ? "this program was built without the CUDA toolkit" : card.why_not;
      const std::string advice = card.built_without
                                     ? "build it again where nvcc is found"
                                     : "install NVIDIA's driver (on Debian: nvidia-driver, from non-free)";
      if (card.wanted) {
        problem("card", ExitCode::device, why, advice + ", or use --device cpu");
      } else {
        note("card", "the processor is used: " + why, "for a card: " + advice);
      }
      return;
    }
    const DeviceFacts& d = *card.device;
    good("card", fmt::format("{}, sm_{}, {} multiprocessors{}{}", d.name, d.sm, d.multiprocessors,
                             card.driver.empty() ? "" : ", driver " + card.driver,
                             d.drives_display ? ", drives a display" : ""));
    card_memory(d);
    if (!card.nvml_why_not.empty()) {
      note("card", fmt::format("power, heat and clocks are not known: {}", card.nvml_why_not),
           "the driver's libnvidia-ml.so.1 tells them; without it energy is unknown");
      return;
    }
    card_link();
    card_power();
  }

  void card_memory(const DeviceFacts& d) {
    const std::int64_t total = d.total_bytes, used = d.free_bytes > 0 ? total - d.free_bytes : 0;
    const auto text = fmt::format("{} of {} free", format_bytes(total - used), format_bytes(total));
    std::string holders;
    if (c_.card.description.processes) {
      std::vector<CardProcess> processes = *c_.card.description.processes;
      std::sort(processes.begin(), processes.end(), [](const CardProcess& a, const CardProcess& b) {
        return a.bytes.value_or(0) > b.bytes.value_or(0);
      });
      if (processes.size() > kMostProcesses) processes.resize(kMostProcesses);
      for (const CardProcess& p : processes) {
        holders += fmt::format("{}{} (process {}{})", holders.empty() ? "" : ", ",
                               p.name.empty() ? "unknown" : p.name, p.pid,
                               p.bytes ? ", " + format_bytes(*p.bytes) : "");
      }
    }
    if (used < kMuchOfOthersBytes) return good("card", text);
    note("card",
         holders.empty() ? text + ", and the driver does not say who holds the rest"
                         : fmt::format("{}; held by {}", text, holders),
         "end those programs, or let the display run on another card: the plan takes what is free now");
  }

  void card_link() {
    const CardDescription& d = c_.card.description;
    if (!d.pcie_generation || !d.pcie_width) return;
    const auto now = fmt::format("PCIe {}.0 x{}", *d.pcie_generation, *d.pcie_width);
    const int most_generation = d.most_pcie_generation.value_or(*d.pcie_generation);
    const int most_width = d.most_pcie_width.value_or(*d.pcie_width);
    if (*d.pcie_generation >= most_generation && *d.pcie_width >= most_width) return good("card", now);
    note(
        "card",
        fmt::format("{}, of PCIe {}.0 x{} that card and board can do", now, most_generation, most_width),
        *d.pcie_width < most_width
            ? "put the card into the slot next to the processor, and look whether another device shares its lanes"
            : "look for the link's generation in the board's setup, and for a riser cable that slows it "
              "down");
  }

  void card_power() {
    const CardDescription& d = c_.card.description;
    const CardReading& r = c_.card.reading;
    if (d.limit_watts) {
      const bool capped = d.default_limit_watts && *d.limit_watts < *d.default_limit_watts;
      const auto text =
          fmt::format("power limit {:.0f} W{}{}", *d.limit_watts,
                      d.default_limit_watts ? fmt::format(", {:.0f} W as sold", *d.default_limit_watts) : "",
                      r.celsius ? fmt::format("; {:.0f} degrees now", *r.celsius) : "");
      if (capped) {
        note("card", text,
             fmt::format("saves energy and costs time (docs/estimate.md); back: nvidia-smi -pl {:.0f}",
                         *d.default_limit_watts));
      } else {
        good("card", text);
      }
    }
    if (r.celsius && *r.celsius >= kHotCelsius) {
      note("card", fmt::format("{:.0f} degrees before anything has run", *r.celsius),
           "let air to it, or lower its limit: nvidia-smi -pl with four fifths of its watts costs little");
    }
    if (r.throttle && !r.throttle->empty()) {
      note("card", fmt::format("its clocks are held back: {}", fmt::join(*r.throttle, ", ")),
           "heat: air; power: cables and supply; software: nvidia-smi -q -d PERFORMANCE tells whose limit");
    }
  }

  // What paging takes of a step, where the run pages.
  std::string paging_words() const {
    const double in = c_.plan.rehearsed.optimizer_step.host_to_device_bytes;
    const double out = c_.plan.rehearsed.optimizer_step.device_to_host_bytes;
    if (in + out == 0 || !c_.plan.config.engine.optim.paged) return {};
    return fmt::format("; a step's paging takes {}",
                       format_duration(in / c_.copies->in + out / c_.copies->out));
  }

  void copies() {
    if (!c_.copies) {
      if (!c_.copies_error.empty())
        problem("copies", ExitCode::device, c_.copies_error,
                "see the findings about the card and its memory");
      return;
    }
    const CopyRates& r = *c_.copies;
    const auto text = fmt::format("{:.1f} GB/s to the device, {:.1f} back, {:.1f} both ways at once{}",
                                  r.in * 1e-9, r.out * 1e-9, r.both * 1e-9, paging_words());
    const CardDescription& d = c_.card.description;
    if (on_card() && d.pcie_generation && d.pcie_width) {
      const double link = pcie_link_bytes_s(*d.pcie_generation, *d.pcie_width);
      if (link > 0 && std::min(r.in, r.out) < kSlowLinkShare * link) {
        return note("copies", fmt::format("{}: far below the link's {:.1f}", text, link * 1e-9),
                    "another program may be using the bus or the memory; on boards with several processors, "
                    "run on the card's own: numactl --cpunodebind");
      }
    }
    good("copies", text);
  }

  void disk() {
    const DiskFacts& d = c_.disk;
    if (!d.error.empty()) {
      return problem("disk", ExitCode::disk, d.error, "a run saves there: name another place with --out");
    }
    const std::string where =
        fmt::format("'{}'{}", d.folder, d.filesystem.empty() ? "" : " on " + d.filesystem);
    if (d.written_bytes > 0 && d.write_s > 0) {
      const double rate = static_cast<double>(d.written_bytes) / d.write_s;
      const double save_s = static_cast<double>(c_.plan.checkpoint_bytes) / rate;
      const auto text =
          fmt::format("{}: {:.2f} GB/s written and synced: a save of {} takes {}", where, rate * 1e-9,
                      format_bytes(c_.plan.checkpoint_bytes), format_duration(save_s));
      if (save_s > kLongSaveSeconds) {
        note(
            "disk", text,
            "saving keeps to 1 % of the time, so saves will be far apart; a faster disk for --out brings them "
            "closer");
      } else {
        good("disk", text);
      }
    }
    if (d.is_memory) {
      note("disk", fmt::format("{} is memory: checkpoints there are gone after a restart", where),
           "name a folder on a disk with --out");
    } else if (d.is_remote) {
      note("disk",
           fmt::format("{}: what a crash leaves there depends on a machine or system behind it", where),
           "prefer a disk of this system for --out; under WSL a folder below /home, not below /mnt");
    }
  }

  void plan() {
    for (const Verdict& v : c_.plan.verdicts) {
      if (!v.available_bytes) continue;
      const auto text = fmt::format("{}: {} needed of {}", resource_name(v.resource),
                                    format_bytes(v.needed_bytes), format_bytes(*v.available_bytes));
      if (v.fits) {
        good("plan", text);
      } else {
        problem("plan", ExitCode::no_fit, text + ": does not fit", fit_hint(c_.plan));
      }
    }
    if (c_.limits.device_assumed) {
      note("plan", "no card was found: 12 GiB are assumed",
           "say what there will be: --vram 8GiB --arch sm_89");
    }
  }

  void run_folder() {
    if (!c_.run_holder) return;
    note("run",
         fmt::format("process {} is training in the run folder: what is measured here shares the machine",
                     *c_.run_holder),
         "stop it first for figures of an idle machine: it continues where it was");
  }

  const Checkup& c_;
  std::vector<Finding> findings_;
};

std::ptrdiff_t count(const std::vector<Finding>& findings, Severity severity) {
  return std::count_if(findings.begin(), findings.end(),
                       [&](const Finding& f) { return f.severity == severity; });
}

const char* severity_name(Severity severity) {
  return severity == Severity::good ? "good" : severity == Severity::note ? "note" : "problem";
}

}  // namespace

double pcie_link_bytes_s(int generation, int lanes) {
  // Transfers a second and lane; 8 of 10 bits are data in the first two generations, then 128 of 130.
  constexpr double kGt[] = {2.5, 5, 8, 16, 32, 64};
  if (generation < 1 || generation > static_cast<int>(std::size(kGt)) || lanes < 1) return 0;
  const double share = generation <= 2 ? 0.8 : 128.0 / 130.0;
  return kGt[generation - 1] * 1e9 * share / 8 * lanes;
}

std::vector<Finding> judge(const Checkup& checkup) { return Judge(checkup).run(); }

ExitCode exit_code_of(const std::vector<Finding>& findings) {
  const auto it = std::find_if(findings.begin(), findings.end(),
                               [](const Finding& f) { return f.severity == Severity::problem; });
  return it == findings.end() ? ExitCode::ok : it->code;
}

std::string findings_text(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings) {
    const char* mark = f.severity == Severity::good   ? "  ok   "
                       : f.severity == Severity::note ? "  NOTE "
                                                      : "  FAIL ";
    text += fmt::format("{} {:<10} {}\n", mark, f.area, f.text);
    if (!f.advice.empty()) text += fmt::format("        {:<10} -> {}\n", "", f.advice);
  }
  const std::ptrdiff_t problems = count(findings, Severity::problem), notes = count(findings, Severity::note);
  text += fmt::format("\n  {} problem{}, {} note{}\n", problems, problems == 1 ? "" : "s", notes,
                      notes == 1 ? "" : "s");
  return text;
}

std::string findings_json(const std::vector<Finding>& findings) {
  nlohmann::ordered_json json;
  json["problems"] = count(findings, Severity::problem);
  json["notes"] = count(findings, Severity::note);
  json["findings"] = nlohmann::ordered_json::array();
  for (const Finding& f : findings) {
    json["findings"].push_back(
        {{"severity", severity_name(f.severity)}, {"area", f.area}, {"text", f.text}, {"advice", f.advice}});
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace qt

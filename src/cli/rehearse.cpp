#include "src/cli/rehearse.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <ostream>
#include <thread>

#include "src/cli/child.h"
#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/core/log.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/io/file.h"
#include "src/io/hash.h"
#include "src/io/json.h"
#include "src/io/run_folder.h"
#include "src/plan/command.h"
#include "src/plan/estimate_text.h"
#include "src/plan/machine.h"
#include "src/plan/remedies.h"
#include "src/plan/screen.h"
#include "src/train/pace.h"
#include "src/train/stop.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kLastStep = kRehearsedSteps + kComparedSteps;
constexpr auto kPollInterval = std::chrono::milliseconds(20);
constexpr double kLeastSpread = 0.05;  // of so few steps
constexpr const char* kMarker = "rehearsal";

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// --- the folder --------------------------------------------------------------------------------------------

// Beside the run folder, and gone with everything in it at the end.
class Scratch {
 public:
  explicit Scratch(const std::string& run_dir) : path_(beside(run_dir)) {
    std::error_code ignored;
    const bool there = fs::exists(path_);
    if (there && !fs::exists(path_ / kMarker) && !fs::is_empty(path_, ignored)) {
      throw ConfigError(
          fmt::format("'{}', where this would be rehearsed, holds something else", path_.string()),
          "move it away, or choose another --out");
    }
    for (fs::path above = path_.parent_path(); !above.empty() && !fs::exists(above);
         above = above.parent_path())
      made_.push_back(above);
    make_folders(posix_fs(), path_);
    lock_.emplace(path_);
    write_file_atomically(posix_fs(), path_ / kMarker, bytes_of("made by `qtrain plan --rehearse`\n"));
    remove_tree(posix_fs(), run());
  }
  ~Scratch() {
    try {
      remove_tree(posix_fs(), path_, "run");  // the marker goes last: what is left is known as ours
    } catch (const Error& e) {
      log_warning("{}", e.what());
    }
    std::error_code ignored;
    for (const fs::path& folder : made_) fs::remove(folder, ignored);  // only where it is empty
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const fs::path& path() const { return path_; }
  fs::path run() const { return path_ / "run"; }
  fs::path out() const { return path_ / "out.txt"; }
  fs::path err() const { return path_ / "err.txt"; }

 private:
  static fs::path beside(const std::string& run_dir) {
    fs::path path = fs::path(run_dir).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    path += ".rehearsal";
    return path;
  }

  fs::path path_;
  std::vector<fs::path> made_;  // folders above it that were not there, innermost first
  std::optional<RunLock> lock_;
};

// --- what the log of the run says --------------------------------------------------------------------------

struct Logged {
  std::map<std::int64_t, double> step_s;
  PlayedBits bits;
  double slowest_save_s = 0;
  double eval_s = 0;
  std::int64_t eval_tokens = 0;
  std::int64_t device_used_bytes = 0;
  std::size_t lines = 0;
};

// From line `first_line` on. A torn line at the end is left out.
Logged read_log(const fs::path& path, std::size_t first_line) {
  Logged log;
  const std::string text = read_text(path), where = path.string();
  for (std::size_t from = 0, to = 0; (to = text.find('\n', from)) != std::string::npos; from = to + 1) {
    if (++log.lines <= first_line) continue;
    const Json record = parse_json(std::string_view(text).substr(from, to - from), where);
    const std::string& kind = json_string(record, "kind", where);
    if (kind == "step") {
      const std::int64_t step = json_int(record, "step", where, 1);
      if (log.bits.first_step == 0) log.bits.first_step = step;
      log.step_s[step] = json_number(record, "seconds", where);
      if (record["loss"].is_number()) log.bits.loss[step] = json_number(record, "loss", where);
      if (json_has(record, "device_used_bytes"))
        log.device_used_bytes = std::max(log.device_used_bytes, json_int(record, "device_used_bytes", where));
    } else if (kind == "save") {
      log.slowest_save_s = std::max(log.slowest_save_s, json_number(record, "seconds", where));
    } else if (kind == "eval") {
      log.eval_s = json_number(record, "seconds", where);
      log.eval_tokens = json_int(record, "val_tokens", where, 0);
    }
  }
  return log;
}

Range time_of_steps(const Logged& log) {
  std::vector<double> seconds;
  for (const auto& [step, took] : log.step_s) {
    if (step > kWarmupSteps && step <= kLastStep) seconds.push_back(took);
  }
  QT_CHECK(!seconds.empty(), DataError, "the log of the rehearsed run names no steps");
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  return {.low = std::min(seconds.front(), median * (1 - kLeastSpread)),
          .high = std::max(seconds.back(), median * (1 + kLeastSpread))};
}

// --- the run -----------------------------------------------------------------------------------------------

// What the child said at its end: "qtrain: what happened\n        what to do".
struct LastWords {
  std::string what, hint;
};
LastWords last_words(const fs::path& err) {
  const std::string text = read_text(err);
  constexpr std::string_view kName = "qtrain: ", kIndent = "\n        ";
  std::size_t at = text.starts_with(kName) ? 0 : text.rfind("\nqtrain: ");
  if (at == std::string::npos) return {.what = text, .hint = {}};
  if (at > 0) ++at;
  const std::size_t hint = text.rfind(kIndent);
  LastWords words;
  words.what = text.substr(at + kName.size(), hint - at - kName.size());
  if (hint != std::string::npos) words.hint = text.substr(hint + kIndent.size());
  while (words.hint.ends_with('\n')) words.hint.pop_back();
  return words;
}

[[noreturn]] void throw_end(int code, const Scratch& scratch) {
  constexpr int kKilled = 128 + 9;
  if (code == kKilled)
    throw FitError("the rehearsed run was killed, which the system does where memory runs out",
                   "close other programs, or say with --ram how much this one may take");
  const LastWords words = last_words(scratch.err());
  constexpr ExitCode kKnown[] = {ExitCode::usage,  ExitCode::no_fit, ExitCode::bad_data, ExitCode::diverged,
                                 ExitCode::device, ExitCode::disk,   ExitCode::stopped};
  for (const ExitCode known : kKnown) {
    if (code == static_cast<int>(known)) throw Error(known, "in the rehearsal: " + words.what, words.hint);
  }
  throw Error(ExitCode::internal,
              fmt::format("the rehearsed run ended with exit code {}: {}", code, words.what), words.hint);
}

// The command of the rehearsed run, which is `run` but for its folder and for what happens when.
std::vector<std::string> words_of_rehearsal(Options o, const RunConfig& run, bool has_validation,
                                            const fs::path& folder) {
  o.out = folder.string();
  if (!names_weights(o.init_from)) o.init_from.clear();  // nothing to resume here
  o.fresh = o.allow_changes = o.quiet = false;
  o.stop_after_s = 0;
  o.log_every = 1;
  o.eval_every = kRehearsedSteps;
  o.sample_every = kRehearsedSteps;
  // An evaluation is saved before. Without one every step is, and both that are needed must be there at the
  // end.
  o.save_every = has_validation ? kLastStep : 1;
  o.keep = has_validation ? 2 : kComparedSteps + 1;
  std::vector<std::string> words = command_words(with_choices(o, run));
  words.insert(words.begin(), "train");
  words.insert(words.end(), {"--halt-in-step", std::to_string(kLastStep + 1)});
  return words;
}

class Stage {
 public:
  Stage(std::vector<std::string> words, const Scratch& scratch)
      : scratch_(scratch), words_(std::move(words)) {}

  // Until the run halts itself; then it is killed there. Returns what it logged.
  Logged play(std::ostream* announce, double evaluation_steps) {
    Child child(words_, scratch_.out(), scratch_.err());
    const std::size_t lines_before = lines_;
    for (;;) {
      if (stop_requested()) {
        child.kill();
        throw StopRequested("stopped on request",
                            "the rehearsal is removed; the same command starts it over");
      }
      const Child::State state = child.poll();
      if (state == Child::State::ended) throw_end(child.exit_code(), scratch_);
      if (announce != nullptr || state == Child::State::halted) {
        Logged log = read_log(RunFolder(scratch_.run()).log(), lines_before);
        if (announce != nullptr && !log.step_s.empty()) {
          const double first = log.step_s.begin()->second;
          const double more = static_cast<double>(kLastStep - 1 + kComparedSteps) + evaluation_steps;
          *announce << fmt::format("  step 1 took {}: the rest takes about {}\n", format_duration(first),
                                   format_duration(first * more))
                    << std::flush;
          announce = nullptr;
        }
        if (state == Child::State::halted) {
          lines_ = log.lines;
          resident_bytes_ = std::max(resident_bytes_, child.peak_resident_bytes());
          child.kill();
          return log;
        }
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  }

  fs::path checkpoint(std::int64_t step) const { return scratch_.run() / checkpoint_name(step); }
  std::int64_t resident_bytes() const { return resident_bytes_; }

 private:
  const Scratch& scratch_;
  std::vector<std::string> words_;
  std::size_t lines_ = 0;
  std::int64_t resident_bytes_ = 0;
};

void require_steps(std::int64_t steps) {
  if (steps > kLastStep) return;
  throw ConfigError(
      fmt::format("a run of {} steps is no longer than its rehearsal of {}", steps, kLastStep + 1),
      "start it: `qtrain` with the same options");
}

const Card* card_here(std::optional<DeviceKind> device) {
  if (device == DeviceKind::cpu) return nullptr;
  const std::optional<DeviceFacts> here = device_here();
  return here ? card_of_device(*here) : nullptr;
}

std::string range_text(Range seconds) {
  const std::string low = format_duration(seconds.low), high = format_duration(seconds.high);
  return low == high ? low : fmt::format("{} to {}", low, high);
}

// Plays the run twice, the second time from the last save that the kill has left. Throws where their bits differ.
Rehearsal play_twice(Stage& stage, double evaluation_steps, std::ostream& out) {
  Logged straight = stage.play(&out, evaluation_steps);
  straight.bits.state = tensors_hash(stage.checkpoint(kLastStep));
  Rehearsal measured;
  for (const ManifestFile& file : verify_checkpoint(stage.checkpoint(kLastStep), VerifyDepth::sizes).files)
    measured.checkpoint_bytes += file.bytes;
  out << fmt::format("  killed in step {} (kill -9); continued from step {}\n", kLastStep + 1,
                     kRehearsedSteps)
      << std::flush;
  for (std::int64_t step = kRehearsedSteps + 1; step <= kLastStep; ++step)
    remove_tree(posix_fs(), stage.checkpoint(step), kManifestName);
  Logged continued = stage.play(nullptr, 0);
  continued.bits.state = tensors_hash(stage.checkpoint(kLastStep));
  require_same_bits(straight.bits, continued.bits);
  out << fmt::format("  after step {} its state is that of the run before the kill, bit for bit: {}\n",
                     kLastStep, straight.bits.state);

  measured.step_s = time_of_steps(straight);
  measured.resident_bytes = stage.resident_bytes();
  measured.device_used_bytes = std::max(straight.device_used_bytes, continued.device_used_bytes);
  measured.save_s = std::max(straight.slowest_save_s, continued.slowest_save_s);
  measured.eval_s = straight.eval_s;
  measured.eval_tokens = straight.eval_tokens;
  return measured;
}

}  // namespace

void require_same_bits(const PlayedBits& before, const PlayedBits& after) {
  if (after.first_step != kRehearsedSteps + 1) {
    throw Error(ExitCode::internal, fmt::format("after the kill the run went on with step {}, not {}",
                                                after.first_step, kRehearsedSteps + 1));
  }
  const bool same_losses = std::all_of(after.loss.begin(), after.loss.end(), [&](const auto& step) {
    const auto it = before.loss.find(step.first);
    return it != before.loss.end() && it->second == step.second;
  });
  if (same_losses && before.state == after.state) return;
  throw Error(ExitCode::internal,
              fmt::format("after step {} the continued run is not the one that was not touched: its state is "
                          "{}, and should be {}",
                          kLastStep, after.state, before.state),
              "this is a defect of qtrain, or memory or a device that computes wrongly: rehearse again, and "
              "report it where it stays so");
}

std::string tensors_hash(const fs::path& checkpoint) {
  Xxh3 hash;
  for (const ManifestFile& file : verify_checkpoint(checkpoint).files) {
    if (file.name.ends_with(".safetensors")) hash.update(bytes_of(file.name + file.xxh3_128));
  }
  return hash.hex();
}

std::string rehearsal_text(const Plan& run, const Rehearsal& m, const std::optional<Estimate>& assumed) {
  const bool on_card = run.config.target.kind == DeviceKind::cuda;
  std::string text = fmt::format("\n    {:<14} {:>24} {:>24}\n", "", "planned", "measured");
  const auto row = [&](std::string_view name, const std::string& planned, const std::string& measured) {
    text += fmt::format("    {:<14} {:>24} {:>24}\n", name, planned, measured);
  };
  const auto bytes = [](std::int64_t n) { return n > 0 ? format_bytes(n) : std::string("unknown"); };
  const auto rate = [](double bytes_s) { return fmt::format("{:.2g} GB/s", bytes_s * 1e-9); };
  row("a step", assumed ? range_text(assumed->step_s) : "unknown", range_text(m.step_s));
  if (m.eval_s > 0) {
    row("an evaluation", fmt::format("{} tokens", format_thousands(m.eval_tokens)),
        format_duration(m.eval_s));
  }
  std::int64_t host_bytes = run.host_bytes;
  if (on_card)
    row("on the device", bytes(run.device_bytes), bytes(m.device_used_bytes));
  else
    host_bytes += run.device_bytes;
  row("in memory", bytes(host_bytes), bytes(m.resident_bytes));
  row("a checkpoint", bytes(run.checkpoint_bytes), bytes(m.checkpoint_bytes));
  const auto size = static_cast<double>(m.checkpoint_bytes);
  row("a save", range_text({.low = size / kFastDiskBytesPerSecond, .high = size / kDiskBytesPerSecond}),
      format_duration(m.save_s));
  row("the disk", fmt::format("{} to {}", rate(kDiskBytesPerSecond), rate(kFastDiskBytesPerSecond)),
      m.save_s > 0 ? rate(size / m.save_s) : "unknown");
  text += "    (in memory is the whole process: the program and its libraries come on top of the plan)\n\n";
  if (assumed) {
    const double ratio = (m.step_s.low + m.step_s.high) / (assumed->step_s.low + assumed->step_s.high);
    const bool inside = m.step_s.low >= assumed->step_s.low && m.step_s.high <= assumed->step_s.high;
    text += fmt::format("  a step takes {:.2f} times the middle of what was assumed{}\n", ratio,
                        inside ? ", and lies in its range" : "");
  } else {
    text += "  what a step takes was not known before: no table has this device's peak\n";
  }
  return text;
}

void rehearse_run(const LoadedOptions& loaded, std::ostream& out) {
  PlanRequest request{.options = loaded.options};
  Options& o = request.options;
  adopt_named_weights(o);
  check_options(o);
  RunData(o).check();
  if (std::find(o.data.begin(), o.data.end(), "-") != o.data.end()) {
    throw ConfigError("a rehearsal cannot read standard input: its run is started twice",
                      "tokenize it first: `qtrain tokenize --data - --cache FOLDER`, then --data FOLDER");
  }
  // What `auto` became for the run that is there counts for the rehearsal too.
  if (const std::optional<RunState> begun = newest_readable_state(o.out)) adopt_resolved(o, *begun);
  request.target = target_from_options(o);
  if (request.target.kind == DeviceKind::cuda)
    probe_device("cuda");  // throws where there is none to rehearse on
  if (o.steps > 0) require_steps(o.steps);
  const Scratch scratch(o.out);
  const RunData named(o);
  const PreparedData data = named.load();
  named.require_vocabulary(*data.tokenizer);
  request.vocab_size = data.tokenizer->vocab_size();
  request.limits = limits_from_options(o, request.target);
  Plan run = plan_run(request);
  require_fit(run, request);  // with the vocabulary that the text turned out to have
  const RunConfig& config = run.config;
  require_steps(config.steps);
  const std::unique_ptr<EvalBatches> validation =
      open_validation(data, config.eval_tokens, config.engine.model.seq_len);

  EstimateInput in{.card = card_here(o.device),
                   .eval_every = config.trainer.eval_every,
                   .save_every = config.trainer.save.every};
  in.eval_tokens = validation ? validation->targets() : 0;
  in.watts = watts_given(config.watts);
  std::optional<Estimate> assumed;
  if (in.card != nullptr) assumed = estimate_run(run, in);

  out << fmt::format("  rehearsal of {}\n  in {}, which is removed afterwards\n", run.command,
                     scratch.path().string());
  const double eval_tokens = static_cast<double>(in.eval_tokens);
  // Of a step's work: an evaluation is a forward pass.
  const double evaluation_steps = run.rehearsed.eval_step.executed_flops * eval_tokens /
                                  static_cast<double>(run.config.engine.micro_batch_tokens()) /
                                  run.rehearsed.train_step(run.config.engine.accumulation).executed_flops;
  const double steps = static_cast<double>(kLastStep + kComparedSteps) + evaluation_steps;
  out << fmt::format(
             "  {} steps of {} tokens, an evaluation of {} tokens, a sample, {} saves of {}, two kills: {}\n",
             kLastStep + kComparedSteps, format_thousands(run.config.engine.step_tokens()),
             format_thousands(in.eval_tokens), validation ? 3 : kLastStep + kComparedSteps,
             format_bytes(run.checkpoint_bytes),
             assumed ? fmt::format("about {}, as assumed for the {}",
                                   range_text({.low = steps * assumed->step_s.low,
                                               .high = steps * assumed->step_s.high}),
                                   in.card->driver_name)
                     : "how long that takes is said after the first step")
      << std::flush;

  Stage stage(words_of_rehearsal(o, config, validation != nullptr, scratch.run()), scratch);
  const Rehearsal measured = play_twice(stage, evaluation_steps, out);
  out << rehearsal_text(run, measured, assumed);

  in.step_seconds = measured.step_s;
  if (measured.eval_s > 0) in.evaluation_seconds = Range{.low = measured.eval_s, .high = measured.eval_s};
  if (measured.save_s > 0) in.disk_bytes_s = static_cast<double>(measured.checkpoint_bytes) / measured.save_s;
  EstimateView view{
      .efficiency_why = fmt::format("steps {} to {} of this rehearsal", kWarmupSteps + 1, kLastStep),
      .now_unix_s = std::time(nullptr)};
  view.price = price_given(config.price);
  out << "\n" << estimate_text(run, in, estimate_run(run, in), view);
  out.flush();
}

}  // namespace qt

#include "src/watch/run_log.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "src/core/error.h"
#include "src/train/pace.h"

namespace qt {

namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr std::size_t kMostLineBytes = std::size_t{8} << 20;
constexpr std::size_t kMostReasons = 32, kMostReasonBytes = 100;  // a driver has about ten
constexpr std::int64_t kMostStep = std::int64_t{1} << 53;

bool is_there(const Json& record, const char* field) {
  const auto it = record.find(field);
  return it != record.end() && !it->is_null();
}

double number_or_unknown(const Json& record, const char* field, const std::string& where) {
  return is_there(record, field) ? json_number(record, field, where) : kUnknown;
}

// Beyond what a float holds a number is as good as not finite.
float float_or_unknown(const Json& record, const char* field, const std::string& where) {
  const double value = number_or_unknown(record, field, where);
  return std::abs(value) <= static_cast<double>(std::numeric_limits<float>::max()) ? static_cast<float>(value)
                                                                                   : kUnknownF;
}

// A moment that no calendar has is unknown.
double time_or_unknown(const Json& record, const std::string& where) {
  constexpr double kMostSeconds = 1e11;  // three thousand years
  const double value = number_or_unknown(record, "unix_s", where);
  return std::abs(value) <= kMostSeconds ? value : kUnknown;
}

std::optional<double> maybe_number(const Json& record, const char* field, const std::string& where) {
  return is_there(record, field) ? std::optional(json_number(record, field, where)) : std::nullopt;
}

std::optional<std::int64_t> maybe_count(const Json& record, const char* field, const std::string& where) {
  return is_there(record, field) ? std::optional(json_int(record, field, where, 0)) : std::nullopt;
}

std::string maybe_text(const Json& record, const char* field, const std::string& where) {
  return is_there(record, field) ? json_string(record, field, where) : std::string();
}

bool flag_or_false(const Json& record, const char* field, const std::string& where) {
  return is_there(record, field) && json_bool(record, field, where);
}

// The text, or the beginning of it that ends with a whole character.
std::string shortened(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

std::vector<std::pair<std::string, std::int64_t>> rows_of(const Json& record, const char* field,
                                                          const std::string& where) {
  std::vector<std::pair<std::string, std::int64_t>> rows;
  if (!is_there(record, field)) return rows;
  // As many as a record can hold add up to less than 2^63.
  constexpr std::int64_t kMostBytes = std::int64_t{1} << 45;
  const Json& object = json_object(record, field, where);
  for (const auto& item : object.items())
    rows.emplace_back(item.key(), json_int(object, item.key(), where + ": " + field, 0, kMostBytes));
  return rows;
}

// Removes what has `step` or a later one.
template <class T>
std::int64_t drop_from(std::vector<T>& list, std::int64_t step) {
  const std::size_t before = list.size();
  while (!list.empty() && list.back().step >= step) list.pop_back();
  return static_cast<std::int64_t>(before - list.size());
}

// Puts records together as they come.
class Builder {
 public:
  explicit Builder(RunLog& log) : log_(log) {}

  void add(const Json& record, const std::string& where) {
    const std::string& kind = json_string(record, "kind", where);
    if (kind == "start") {
      start(record, where);
    } else if (kind == "step") {
      step(record, where);
    } else if (kind == "eval") {
      eval(record, where);
    } else if (kind == "sample") {
      sample(record, where);
    } else if (kind == "save") {
      ++log_.saves;
      add_seconds(log_.save_seconds, record, where);
    } else if (kind == "restore") {
      ++log_.restores;
      event(kind, record, where);
      go_back_to(step_of(record, where) + 1);
    } else if (kind == "overflow") {
      ++log_.overflows;
      event(kind, record, where);
    } else if (kind == "slow") {
      ++log_.slow;
      event(kind, record, where);
    } else if (kind == "stop" || kind == "done" || kind == "diverged") {
      event(kind, record, where);
      session().end = kind;
      if (is_there(record, "kwh") || is_there(record, "kwh_at_least")) set_energy(record, where);
    }
  }

 private:
  static std::int64_t step_of(const Json& record, const std::string& where) {
    return json_int(record, "step", where, 0, kMostStep);
  }

  static void add_seconds(double& sum, const Json& record, const std::string& where) {
    const double seconds = number_or_unknown(record, "seconds", where);
    if (seconds < 0)
      throw DataError(fmt::format("{}: field 'seconds' must not be below 0, got {}", where, seconds));
    if (!std::isnan(seconds)) sum += seconds;
  }

  // Logs of earlier versions do not say when a session begins: then it is where one has ended before, or
  // where steps are done again for no reason that the log gives.
  RunLog::Session& session() {
    if (log_.sessions.empty() || !log_.sessions.back().end.empty()) log_.sessions.emplace_back();
    return log_.sessions.back();
  }

  void start(const Json& record, const std::string& where) {
    const bool was_cut = !log_.sessions.empty() && log_.sessions.back().end.empty();
    log_.sessions.emplace_back();
    RunLog::Start& s = log_.sessions.back().start;
    s.version = maybe_text(record, "version", where);
    s.model = maybe_text(record, "model", where);
    s.quant = maybe_text(record, "quant", where);
    s.dtype = maybe_text(record, "dtype", where);
    s.device = maybe_text(record, "device", where);
    s.price = maybe_text(record, "price", where);
    s.command = maybe_text(record, "command", where);
    s.steps = maybe_count(record, "steps", where);
    s.params = maybe_count(record, "params", where);
    s.device_bytes = maybe_count(record, "device_bytes", where);
    s.device_rows = rows_of(record, "device_rows", where);
    s.host_rows = rows_of(record, "host_rows", where);
    s.peak_flops = maybe_number(record, "peak_flops", where);
    said_start_ = true;
    if (!is_there(record, "step")) return;
    event("start", record, where);
    std::string& text = log_.events.back().text;
    if (!s.version.empty()) text = "qtrain " + s.version;
    if (was_cut) {
      if (!text.empty()) text += "; ";
      text += "the one before ended without a word (killed, crash or power cut)";
    }
    go_back_to(step_of(record, where) + 1);
  }

  void step(const Json& record, const std::string& where) {
    RunLog::Step s;
    s.step = step_of(record, where);
    if (!log_.steps.empty() && s.step <= log_.steps.back().step && !said_start_) {
      if (!log_.sessions.empty()) log_.sessions.emplace_back();  // a kill
    }
    said_start_ = false;
    go_back_to(s.step);
    RunLog::Session& own = session();
    s.unix_s = time_or_unknown(record, where);
    s.loss = float_or_unknown(record, "loss", where);
    s.norm = float_or_unknown(record, "norm", where);
    s.lr = float_or_unknown(record, "lr", where);
    add_seconds(log_.step_seconds, record, where);
    s.seconds = float_or_unknown(record, "seconds", where);
    s.tokens_per_s = float_or_unknown(record, "tokens_per_s", where);
    s.mfu = float_or_unknown(record, "mfu", where);
    s.watts = float_or_unknown(record, "watts", where);
    s.celsius = float_or_unknown(record, "celsius", where);
    s.skipped = flag_or_false(record, "skipped", where);
    s.warmup = is_there(record, "warmup") ? json_bool(record, "warmup", where) : own.steps < kWarmupSteps;
    if (is_there(record, "throttle")) {
      for (const Json& reason : json_array(record, "throttle", where)) {
        if (!reason.is_string())
          throw DataError(fmt::format("{}: field 'throttle' must be a list of texts", where));
        const std::string word = shortened(reason.get<std::string>(), kMostReasonBytes);
        if (log_.throttle_steps.size() < kMostReasons || log_.throttle_steps.contains(word))
          ++log_.throttle_steps[word];
        s.throttled = true;
      }
    }
    if (const auto used = maybe_count(record, "device_used_bytes", where))
      log_.device_used_bytes = std::max(*used, log_.device_used_bytes.value_or(0));
    log_.tokens = maybe_count(record, "tokens", where);
    set_energy(record, where);
    log_.skipped += s.skipped ? 1 : 0;
    ++own.steps;
    log_.steps.push_back(s);
  }

  void set_energy(const Json& record, const std::string& where) {
    log_.kwh = maybe_number(record, "kwh", where);
    log_.kwh_at_least = maybe_number(record, "kwh_at_least", where);
  }

  void eval(const Json& record, const std::string& where) {
    RunLog::Eval e{.step = step_of(record, where),
                   .loss = number_or_unknown(record, "val_loss", where),
                   .bpb = maybe_number(record, "val_bpb", where)};
    add_seconds(log_.eval_seconds, record, where);
    ++log_.evaluations;
    drop_from(log_.evals, e.step);
    log_.evals.push_back(e);
  }

  void sample(const Json& record, const std::string& where) {
    RunLog::Sample s{.step = step_of(record, where),
                     .text = shortened(json_string(record, "text", where), RunLog::kMostSampleBytes)};
    drop_from(log_.samples, s.step);
    log_.samples.push_back(std::move(s));
    if (log_.samples.size() < 2 * RunLog::kMostSamples) return;
    std::vector<RunLog::Sample> kept;
    for (std::size_t i = 1; i < log_.samples.size(); i += 2) kept.push_back(std::move(log_.samples[i]));
    log_.samples = std::move(kept);
  }

  void event(const std::string& kind, const Json& record, const std::string& where) {
    RunLog::Event e{.kind = kind, .step = step_of(record, where)};
    e.unix_s = time_or_unknown(record, where);
    if (std::isnan(e.unix_s) && kind != "start" && !log_.steps.empty()) e.unix_s = log_.steps.back().unix_s;
    e.text = shortened(maybe_text(record, "why", where), RunLog::kMostSampleBytes);
    e.value = number_or_unknown(record, kind == "slow" ? "times_slower" : "loss_scale", where);
    if (log_.events.size() >= 2 * RunLog::kMostEvents)
      log_.events.erase(log_.events.begin(), log_.events.begin() + RunLog::kMostEvents);
    log_.events.push_back(std::move(e));
  }

  // Step `step` is done next: what the log has of it, and of what came after it, was lost.
  void go_back_to(std::int64_t step) {
    log_.lost_steps += drop_from(log_.steps, step);
    drop_from(log_.evals, step);
    drop_from(log_.samples, step);
  }

  RunLog& log_;
  bool said_start_ = false;  // and no step since
};

}  // namespace

LogLines::LogLines(const std::filesystem::path& path, std::uint64_t from)
    : file_(path), at_(std::min(from, file_.bytes())), numbered_(from == 0) {
  std::string_view cut;
  if (from > 0) next_line(cut);
}

std::string LogLines::where() const {
  return numbered_ ? fmt::format("{}:{}", file_.path().string(), line_) : file_.path().string();
}

bool LogLines::fill() {
  const std::size_t piece =
      static_cast<std::size_t>(std::min<std::uint64_t>(kPieceBytes, file_.bytes() - at_));
  if (piece == 0) return false;
  buffer_.erase(0, taken_);
  taken_ = 0;
  const std::size_t before = buffer_.size();
  buffer_.resize(before + piece);
  file_.read_at(at_, std::as_writable_bytes(std::span(buffer_).subspan(before)));
  at_ += piece;
  return true;
}

bool LogLines::next_line(std::string_view& line) {
  std::size_t looked = taken_;
  for (;;) {
    const std::size_t end = buffer_.find('\n', looked);
    if (end != std::string::npos) {
      line = std::string_view(buffer_).substr(taken_, end - taken_);
      taken_ = end + 1;
      ++line_;
      return true;
    }
    const std::size_t pending = buffer_.size() - taken_;
    if (pending > kMostLineBytes) {
      ++line_;
      throw DataError(
          fmt::format("{}: a line of more than {} bytes: this is no log", where(), kMostLineBytes));
    }
    if (!fill()) break;
    looked = pending;
  }
  return false;
}

bool LogLines::next(Json& record) {
  std::string_view line;
  if (next_line(line)) {
    record = parse_json(line, where());
    return true;
  }
  // What a kill tears begins as a record does; what a power cut leaves unwritten is zero. Anything else was
  // never a log.
  const std::string_view rest = std::string_view(buffer_).substr(taken_);
  torn_ = !rest.empty();
  if (torn_ && rest.front() != '{' && rest.find_first_not_of('\0') != std::string_view::npos) {
    ++line_;
    throw DataError(fmt::format("{}: not a record: {}", where(), in_quotes(rest.substr(0, 40))));
  }
  return false;
}

const RunLog::Start* RunLog::start() const {
  for (auto it = sessions.rbegin(); it != sessions.rend(); ++it) {
    if (!it->start.model.empty() || it->start.steps) return &it->start;
  }
  return nullptr;
}

RunLog read_run_log(const std::filesystem::path& path) {
  RunLog log;
  Builder builder(log);
  LogLines lines(path);
  for (Json record; lines.next(record);) builder.add(record, lines.where());
  log.torn = lines.torn();
  if (log.events.size() > RunLog::kMostEvents)
    log.events.erase(log.events.begin(), log.events.end() - RunLog::kMostEvents);
  return log;
}

}  // namespace qt

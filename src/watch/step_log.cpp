#include "src/watch/step_log.h"

#include <cmath>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/io/json.h"
#include "src/watch/run_log.h"

namespace qt {

namespace {

constexpr std::uintmax_t kTailBytes = std::uintmax_t{1} << 20;  // some thousand steps
constexpr std::size_t kLeastSteps = 5;

// Where the newest records of a log begin, some of them perhaps torn; nothing where there is no log.
std::optional<std::uintmax_t> newest_records(const std::filesystem::path& log) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(log, error);
  if (error) return std::nullopt;
  return size > kTailBytes ? size - kTailBytes : 0;
}

}  // namespace

std::optional<StepTimes> step_times_of(std::vector<double> seconds) {
  if (seconds.size() > Pace::kHistory)
    seconds.erase(seconds.begin(), seconds.end() - static_cast<std::ptrdiff_t>(Pace::kHistory));
  if (seconds.size() < kLeastSteps) return std::nullopt;
  const auto steps = static_cast<std::int64_t>(seconds.size());
  return StepTimes{.seconds = usual_seconds(std::move(seconds)), .steps = steps};
}

std::string log_device_name(DeviceKind kind, const std::string& card_name) {
  return kind == DeviceKind::cpu ? "cpu" : card_name;
}

std::optional<StepTimes> read_step_times(const std::filesystem::path& log, std::int64_t step_tokens,
                                         const std::string& device) {
  const std::optional<std::uintmax_t> from = newest_records(log);
  if (!from) return std::nullopt;
  LogLines lines(log, *from);
  std::vector<double> seconds;
  std::int64_t warming = *from == 0 ? kWarmupSteps : 0;
  bool elsewhere = false;
  for (Json record; lines.next(record);) {
    const std::string where = lines.where();
    const std::string& kind = json_string(record, "kind", where);
    if (kind == "stop" || kind == "start") warming = kWarmupSteps;
    if (kind == "start")
      elsewhere = json_has(record, "device") && json_string(record, "device", where) != device;
    if (kind != "step" || elsewhere) continue;
    const double took = json_number(record, "seconds", where),
                 rate = json_number(record, "tokens_per_s", where);
    if (!(took > 0) || !(rate > 0)) throw DataError(fmt::format("{}: a step that took {} s", where, took));
    // Steps of another size belong to a run with other options.
    if (std::abs(took * rate / static_cast<double>(step_tokens) - 1) > 1e-3) return std::nullopt;
    if (warming > 0) {
      --warming;
      continue;
    }
    seconds.push_back(took);
  }
  return step_times_of(std::move(seconds));
}

std::int64_t evaluated_step_in_log(const std::filesystem::path& log, std::int64_t step) {
  std::int64_t evaluated = 0;
  const std::optional<std::uintmax_t> from = newest_records(log);
  if (!from) return evaluated;
  try {
    LogLines lines(log, *from);
    for (Json record; lines.next(record);) {
      const std::string where = lines.where();
      if (json_string(record, "kind", where) != "eval") continue;
      const std::int64_t at = json_int(record, "step", where, 0);
      if (at <= step) evaluated = at;
    }
  } catch (const DataError& e) {
    log_warning("which steps were evaluated is not known: {}", e.what());
  }
  return evaluated;
}

}  // namespace qt

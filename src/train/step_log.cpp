#include "src/train/step_log.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <vector>

#include "src/core/error.h"
#include "src/io/json.h"

namespace qt {

namespace {

constexpr std::streamoff kTailBytes = std::streamoff{1} << 20;  // some thousand steps
constexpr std::size_t kLeastSteps = 5;

// The newest whole lines; where the log is longer, without the first, which may be cut.
std::vector<std::string> newest_lines(const std::filesystem::path& log, bool& from_start) {
  std::ifstream in(log, std::ios::binary | std::ios::ate);
  if (!in) return {};
  const std::streamoff size = in.tellg();
  const std::streamoff first = std::max<std::streamoff>(0, size - kTailBytes);
  from_start = first == 0;
  in.seekg(first);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  std::vector<std::string> lines;
  for (std::size_t from = 0, to = 0; (to = text.find('\n', from)) != std::string::npos; from = to + 1)
    lines.push_back(text.substr(from, to - from));
  if (!from_start && !lines.empty()) lines.erase(lines.begin());
  return lines;
}

}  // namespace

std::optional<StepTimes> read_step_times(const std::filesystem::path& log, std::int64_t step_tokens) {
  bool from_start = true;
  const std::vector<std::string> lines = newest_lines(log, from_start);
  std::vector<double> seconds;
  std::int64_t warming = from_start ? kWarmupSteps : 0;
  for (const std::string& line : lines) {
    const std::string where = log.string();
    const Json record = parse_json(line, where);
    const std::string& kind = json_string(record, "kind", where);
    if (kind == "stop" || kind == "start") warming = kWarmupSteps;
    if (kind != "step") continue;
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
  if (seconds.size() > Pace::kHistory)
    seconds.erase(seconds.begin(), seconds.end() - static_cast<std::ptrdiff_t>(Pace::kHistory));
  if (seconds.size() < kLeastSteps) return std::nullopt;
  const auto steps = static_cast<std::int64_t>(seconds.size());
  return StepTimes{.seconds = usual_seconds(std::move(seconds)), .steps = steps};
}

}  // namespace qt

// What a run has written into its log.jsonl, read back. The fields that a record may lack are unknown here,
// never 0: logs of earlier versions have fewer, and not every machine can measure everything.
//
// A run that was killed, or went back after a restore, does steps again that its log already has: what comes
// later takes the place of what came before. Numbers only; what they mean for a person is
// src/watch/run_status.h and src/watch/report.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/io/file.h"
#include "src/io/json.h"

namespace qt {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
inline constexpr float kUnknownF = std::numeric_limits<float>::quiet_NaN();

// The records of a log, one after the other, as long as the file was when it was opened: a run may be writing
// to it. A last line without its end was torn by a kill or is being written; it is left out.
class LogLines {
 public:
  // From byte `from` on; above 0 the first line, which may be cut, is left out. DataError for what is no
  // regular file.
  explicit LogLines(const std::filesystem::path& path, std::uint64_t from = 0);

  // False at the end. DataError naming file and line for a line that is no record.
  bool next(Json& record);
  // Of the last record: "runs/d4/log.jsonl:17", or without a number where reading began further down.
  std::string where() const;
  bool torn() const { return torn_; }

 private:
  bool next_line(std::string_view& line);
  bool fill();

  InputFile file_;
  std::uint64_t at_;    // of the file: read so far
  std::string buffer_;  // read and not yet taken from `taken_` on
  std::size_t taken_ = 0;
  std::int64_t line_ = 0;
  bool numbered_;
  bool torn_ = false;
};

struct RunLog {
  // 56 bytes: a million of them fit anywhere.
  struct Step {
    std::int64_t step = 0;
    double unix_s = kUnknown;
    float loss = kUnknownF;  // also where it was not finite
    float norm = kUnknownF;
    float lr = kUnknownF;
    float seconds = kUnknownF;
    float tokens_per_s = kUnknownF;
    float mfu = kUnknownF;
    float watts = kUnknownF;
    float celsius = kUnknownF;
    bool warmup = false;  // enters no average
    bool skipped = false;
    bool throttled = false;
  };
  struct Eval {
    std::int64_t step = 0;
    double loss = 0;
    std::optional<double> bpb;
  };
  struct Sample {
    std::int64_t step = 0;
    std::string text;  // at most kMostSampleBytes
  };
  // What is not a matter of course.
  struct Event {
    std::string kind;  // "start", "restore", "overflow", "slow", "stop", "done", "diverged"
    std::int64_t step = 0;
    double unix_s = kUnknown;
    std::string text;         // "why" of a restore; what is odd about a start
    double value = kUnknown;  // times slower; loss scale
  };
  // What a session said of itself when it began; of empty and absent fields nothing is known.
  struct Start {
    std::string version, model, quant, dtype, device, price, command;
    std::optional<std::int64_t> steps, params, device_bytes;
    std::vector<std::pair<std::string, std::int64_t>> device_rows, host_rows;  // name, bytes; by name
    std::optional<double> peak_flops;  // dense 16-bit products, per second
  };
  struct Session {
    Start start;
    std::int64_t steps = 0;  // done in it, lost ones included
    std::string end;         // "stop", "done", "diverged"; empty: it goes on, or ended without a word
  };

  static constexpr std::size_t kMostSampleBytes = 4096;
  static constexpr std::size_t kMostSamples = 64;
  static constexpr std::size_t kMostEvents = 1000;

  std::vector<Session> sessions;
  std::vector<Step> steps;      // ascending, each number once
  std::vector<Eval> evals;      // likewise
  std::vector<Sample> samples;  // likewise; of more than kMostSamples every second one, the newest always
  std::vector<Event> events;    // as they happened, the newest kMostEvents of them
  bool torn = false;            // the last line was

  // Over the whole log, lost steps included.
  std::int64_t lost_steps = 0;  // done, and done again later
  std::int64_t skipped = 0;
  std::int64_t overflows = 0;
  std::int64_t restores = 0;
  std::int64_t slow = 0;
  std::int64_t saves = 0, evaluations = 0;
  double step_seconds = 0, eval_seconds = 0, save_seconds = 0;
  std::map<std::string, std::int64_t> throttle_steps;  // by reason
  std::optional<std::int64_t> device_used_bytes;       // the most

  // Of the last step, or of what ended the session after it.
  std::optional<std::int64_t> tokens;
  std::optional<double> kwh;           // of the whole run
  std::optional<double> kwh_at_least;  // where a part of it was not measured; one of the two at most

  // What the last session that said anything said; nullptr where none did.
  const Start* start() const;
};

// DataError naming file and line for anything that is no record, or has a field of the wrong kind. Records of
// kinds that are not known here are passed over.
RunLog read_run_log(const std::filesystem::path& path);

}  // namespace qt

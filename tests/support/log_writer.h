// Logs of runs that never ran, a record at a time, for tests of what reads them.
#pragma once

#include <cmath>
#include <string>

#include "src/core/log.h"

namespace qt::test {

inline std::string line(const JsonRecord& record) { return record.str() + "\n"; }

inline JsonRecord record(const char* kind, std::int64_t step) {
  return JsonRecord().add("kind", kind).add("step", step);
}

// As the trainer writes it; 1000 tokens a step.
inline JsonRecord step_fields(std::int64_t step, double loss, double seconds = 2) {
  return record("step", step)
      .add("window", step - 1)
      .add("loss", loss)
      .add("norm", 0.5)
      .add("lr", 1e-3)
      .add("seconds", seconds)
      .add("tokens_per_s", 1000 / seconds)
      .add("tokens", 1000 * step)
      .add("skipped", !std::isfinite(loss));
}

inline std::string step_lines(std::int64_t first, std::int64_t last, double loss = 3, double seconds = 2) {
  std::string text;
  for (std::int64_t step = first; step <= last; ++step) text += line(step_fields(step, loss, seconds));
  return text;
}

inline std::string start_line(std::int64_t step, std::int64_t steps) {
  return line(record("start", step)
                  .add("version", "0.1.0")
                  .add("steps", steps)
                  .add("model", "d4")
                  .add("params", 36'700'160)
                  .add("quant", "nf4")
                  .add("dtype", "bf16")
                  .add("device", "GeForce RTX 4070")
                  .add("step_tokens", 1000)
                  .add("device_bytes", std::int64_t{3} << 30)
                  .add_raw("device_rows", "{\"weights\":1073741824,\"activations\":2147483648}")
                  .add_raw("host_rows", "{\"master\":2147483648}")
                  .add("peak_flops", 58.3e12)
                  .add("unix_s", 1'763'760'000)
                  .add("price", "3.5TWD")
                  .add("command", "qtrain --model d4 --quant nf4"));
}

}  // namespace qt::test

// What the benchmarks share: a backend by qtrain's own options, memory for the fields of an op, and the time
// of a call.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/built_backends.h"
#include "kernels/scratch.h"
#include "src/core/units.h"
#include "src/plan/planner.h"

namespace qt::bench {

inline constexpr double kGiga = 1e9;

inline std::unique_ptr<Backend> open_backend(const Target& target) {
  return make_backend(target.kind == DeviceKind::cuda ? "cuda" : "cpu", target);
}

// What the figures belong to.
inline std::string device_name(const Target& target) {
  if (target.kind == DeviceKind::cuda) return probe_device("cuda").name + ", " + target.name;
  const std::string threads = ", " + std::to_string(target.threads) + " threads";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name"))
      return line.substr(std::min(line.find(':') + 2, line.size())) + threads;
  }
  return "unknown processor" + threads;
}

// Memory on one backend, freed with the object; numbers are normal, since the speed of a product depends on
// them.
class Buffers {
 public:
  explicit Buffers(Backend& backend) : backend_(backend) {}

  TensorView empty(std::initializer_list<std::int64_t> shape, DType dtype, Space space = Space::device) {
    TensorView view(nullptr, dtype, shape);
    view.space = space;
    regions_.push_back(backend_.allocate(space, view.bytes()));
    view.data = regions_.back()->base();
    return view;
  }

  TensorView normal(std::initializer_list<std::int64_t> shape, DType dtype) {
    const TensorView wide = empty(shape, DType::f32);
    const RngStream rng{.seed = 1, .purpose = RngPurpose::init, .stream = regions_.size()};
    backend_.run(InitNormal{.x = wide.flat(), .stddev = 1, .rng = rng});
    if (dtype == DType::f32) return wide;
    const TensorView view = empty(shape, dtype);
    backend_.run(Cast{.x = wide.flat(), .y = view.flat()});
    return view;
  }

  // In the layout that a run on this backend gives it.
  PackedView packed(FormatId format, std::int64_t N, std::int64_t K) {
    PackedView w{.format = format, .N = N, .K = K, .layout = packed_layout(format, N, K, backend_.target())};
    w.codes = empty({code_bytes(format, N * K)}, DType::u8);
    w.absmax = empty({scale_count(format, N * K)}, format_info(format).scale_dtype);
    const TensorView src = normal({N * K}, DType::f32);
    backend_.run(Quantize{.src = src, .w = w, .bad_index = empty({1}, DType::f64)});
    return w;
  }

  // The scratch that the op asks for on the target, where it takes any.
  template <class Op>
  void add_scratch(Op& op, const Target& target) {
    const std::int64_t bytes = scratch_bytes(op, target);
    if (bytes > 0) op.scratch = empty({bytes}, DType::u8);
  }

 private:
  Backend& backend_;
  std::vector<std::unique_ptr<MemoryRegion>> regions_;
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Median seconds of one call: of kSamples samples, each as many calls in a row as fill kSampleSeconds and one
// wait for the device at their end, so that a launch hides behind the work before it. The first calls load
// code and choose kernels; they are left out.
template <class Work>
double median_seconds(Backend& backend, Work&& work) {
  constexpr int kSamples = 7;
  constexpr double kSampleSeconds = 0.02;
  constexpr int kMostCalls = 1000;
  const auto sample = [&](int calls) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) work();
    backend.synchronize();
    return seconds_since(start) / calls;
  };
  sample(1);
  const double once = std::max(sample(1), 1e-7);
  const int calls = std::clamp(static_cast<int>(kSampleSeconds / once), 1, kMostCalls);
  std::vector<double> seconds;
  for (int i = 0; i < kSamples; ++i) seconds.push_back(sample(calls));
  std::nth_element(seconds.begin(), seconds.begin() + kSamples / 2, seconds.end());
  return seconds[kSamples / 2];
}

// Takes "--name VALUE" out of the words: an option that is the benchmark's and not qtrain's.
inline std::string take_option(std::vector<std::string>& words, const std::string& name,
                               const std::string& otherwise) {
  const auto at = std::find(words.begin(), words.end(), "--" + name);
  if (at == words.end()) return otherwise;
  if (at + 1 == words.end())
    throw ConfigError("--" + name + " needs a value", "see the head of the benchmark's source");
  const std::string value = *(at + 1);
  words.erase(at, at + 2);
  return value;
}

// "1024,4096": one of the list at a time.
inline std::vector<std::int64_t> counts_of(const std::string& list, const std::string& name) {
  std::vector<std::int64_t> counts;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t end = std::min(list.find(',', at), list.size());
    counts.push_back(parse_count(list.substr(at, end - at), "--" + name));
    at = end + 1;
  }
  return counts;
}

// main() of a benchmark: errors as qtrain's own program reports them.
template <class Run>
int run_benchmark(const char* name, int argc, char** argv, Run&& run) {
  try {
    add_built_backends();
    run(std::vector<std::string>(argv + 1, argv + argc));
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "%s: %s\n", name, e.what());
    if (!e.hint().empty()) std::fprintf(stderr, "        %s\n", e.hint().c_str());
    return static_cast<int>(e.code());
  }
}

}  // namespace qt::bench

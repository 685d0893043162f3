// What the tests of promised bits share: every instruction set and several numbers of threads, memory at the
// least alignment, and inputs with the rare values in them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "kernels/backend.h"
#include "tests/support/packed_tensor.h"

namespace qt::test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline Backend& cpu_with(int threads) {
  static std::map<int, std::unique_ptr<Backend>> all;
  auto& backend = all[threads];
  if (!backend) backend = make_backend("cpu", cpu_target(threads));
  return *backend;
}

// Pins the vector code to one instruction set while it lives.
class PinnedTarget {
 public:
  explicit PinnedTarget(std::int64_t target) { hwy::GetChosenTarget().Update(target); }
  ~PinnedTarget() { hwy::GetChosenTarget().Update(hwy::SupportedTargets()); }
  PinnedTarget(const PinnedTarget&) = delete;
  PinnedTarget& operator=(const PinnedTarget&) = delete;
};

// Calls fn for every instruction set that is built and that this machine has, and for several numbers of
// threads.
inline void on_every_setup(const std::function<void(Backend&)>& fn) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const PinnedTarget pinned(target);
    for (const int threads : {1, 2, 3, 8}) {
      SCOPED_TRACE(fmt::format("{}, {} threads", hwy::TargetName(target), threads));
      fn(cpu_with(threads));
    }
  }
}

// Memory of a backend, handed out piece by piece. Each piece begins one element after a 64-byte boundary,
// aligned for its type and for nothing wider, or else on the boundary.
enum class Alignment : std::uint8_t { least, whole_lines };
class Memory {
 public:
  explicit Memory(Backend& backend, std::int64_t bytes = 16 << 20, Alignment alignment = Alignment::least)
      : backend_(backend), region_(backend.allocate(Space::device, bytes)), alignment_(alignment) {}

  template <class T>
  TensorView put(const std::vector<T>& x) {
    const TensorView view = room<T>(static_cast<std::int64_t>(x.size()));
    backend_.upload(std::as_bytes(std::span(x)), view);
    return view;
  }
  template <class T>
  TensorView room(std::int64_t n) {
    std::byte* const at = region_->base() + used_ + (alignment_ == Alignment::least ? sizeof(T) : 0);
    used_ += (n * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64 + 64;
    EXPECT_LE(used_, region_->bytes());
    return TensorView(at, dtype_of<T>(), {n});
  }
  template <class T>
  std::vector<T> get(const TensorView& view) {
    std::vector<T> x(static_cast<std::size_t>(view.elems()));
    backend_.download(view, std::as_writable_bytes(std::span(x)));
    return x;
  }

 private:
  Backend& backend_;
  std::unique_ptr<MemoryRegion> region_;
  Alignment alignment_;
  std::int64_t used_ = 0;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline std::vector<float> scaled(std::vector<float> x, float factor) {
  for (float& v : x) v *= factor;
  return x;
}

inline std::vector<bf16> rounded(const std::vector<float>& x) {
  std::vector<bf16> y;
  for (const float v : x) y.push_back(to_bf16(v));
  return y;
}

// Normal draws with what is rare among them: zeros of both signs, subnormals, a wide range of magnitudes, an
// empty block.
inline std::vector<float> hostile(std::size_t n, std::uint64_t seed) {
  std::vector<float> x = normal(n, seed);
  for (std::size_t i = 0; i < n; ++i) {
    if (i % 7 == 3) x[i] = 0.0f;
    if (i % 31 == 5) x[i] = -0.0f;
    if (i % 11 == 2) x[i] *= 0x1p-140f;
    if (i % 13 == 4) x[i] *= std::ldexp(1.0f, static_cast<int>(i % 60) - 50);
    if (i >= 512 && i < 768) x[i] = 0.0f;
  }
  return x;
}

}  // namespace qt::test

// Preloaded into the program by tests/cli/test_clock.cpp: a clock that somebody keeps setting. The time of day is
// a day ahead or a day behind by turns; CLOCK_JUMP=all does the same to the clock that only ever runs
// forward, which no system does: the control.
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

namespace {

using ClockGettime = int (*)(clockid_t, timespec*);

constexpr time_t kHourSeconds = 3'600;

time_t jump(bool steady) {
  static std::atomic<unsigned> looks{0};
  const unsigned look = looks++;
  if (steady) return kHourSeconds * static_cast<time_t>(look);
  return look / 3 % 2 == 0 ? 24 * kHourSeconds : -24 * kHourSeconds;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t id, timespec* out) noexcept {
  static const auto real = reinterpret_cast<ClockGettime>(dlsym(RTLD_NEXT, "clock_gettime"));
  static const char* const mode = std::getenv("CLOCK_JUMP");
  static const bool all = mode != nullptr && std::string_view(mode) == "all";
  const int rc = real(id, out);
  if (id == CLOCK_REALTIME || all) out->tv_sec += jump(id != CLOCK_REALTIME);
  return rc;
}

time_t time(time_t* out) noexcept {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != nullptr) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(timeval* out, void*) noexcept {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}

}  // extern "C"

// The error kinds of qtrain and the exit code that each maps to.
//
// Every message answers three questions: what happened, what it means, what to type next. The third part
// is the `hint`; src/cli/main.cpp is the only place that catches and prints.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace qt {

// Documented in README.md; scripts and service units rely on the numbers.
enum class ExitCode : int {
  ok = 0,
  internal = 1,  // a defect of qtrain itself
  usage = 2,     // command line, configuration, a second process on the same run folder
  no_fit = 3,    // the plan does not fit device, host or disk
  bad_data = 4,  // a file is damaged, or its content cannot be used
  diverged = 5,  // the loss stayed non-finite after the allowed restores
  device = 6,    // the device failed or went away
  disk = 7,      // a write failed: disk full, read-only, I/O error
  stopped = 75,  // stopped on request; the same command continues
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what, std::string hint = {})
      : std::runtime_error(what), code_(code), hint_(std::move(hint)) {}

  ExitCode code() const { return code_; }
  const std::string& hint() const { return hint_; }

 private:
  ExitCode code_;
  std::string hint_;
};

// One class per kind, so that tests and callers can name what they expect.
#define QT_ERROR_KIND(Name, exit_code)                            \
  class Name : public Error {                                     \
   public:                                                        \
    explicit Name(const std::string& what, std::string hint = {}) \
        : Error(exit_code, what, std::move(hint)) {}              \
  }

QT_ERROR_KIND(ConfigError, ExitCode::usage);   // the user can correct it
QT_ERROR_KIND(FitError, ExitCode::no_fit);     // carries the plan's verdict
QT_ERROR_KIND(DataError, ExitCode::bad_data);  // names file, field and offset
QT_ERROR_KIND(DivergedError, ExitCode::diverged);
QT_ERROR_KIND(DeviceError, ExitCode::device);
QT_ERROR_KIND(DiskError, ExitCode::disk);  // names path, operation and errno text
QT_ERROR_KIND(StopRequested, ExitCode::stopped);
QT_ERROR_KIND(ShapeError, ExitCode::internal);  // an op was given operands that do not fit together
QT_ERROR_KIND(DTypeError, ExitCode::internal);
QT_ERROR_KIND(PlanError, ExitCode::internal);  // a replay left its recording
#undef QT_ERROR_KIND

}  // namespace qt

// Throws Kind with a formatted message when `cond` is false. Always evaluated: checks are cheap next to
// the work they guard.
#define QT_CHECK(cond, Kind, ...)                      \
  do {                                                 \
    if (!(cond)) throw Kind(fmt::format(__VA_ARGS__)); \
  } while (false)

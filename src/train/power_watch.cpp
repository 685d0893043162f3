#include "src/train/power_watch.h"

#include <system_error>

#include <fmt/format.h>

namespace qt {

namespace {

constexpr std::chrono::seconds kInterval{1};

}  // namespace

PowerWatch::PowerWatch(DeviceKind kind, const DeviceFacts& facts, double assumed_watts)
    : assumed_watts_(assumed_watts) {
  bool sees = false;
  if (kind == DeviceKind::cuda) {
    nvml_ = std::make_unique<Nvml>(facts.pci_bus_id);
    sees = nvml_->found();
  } else {
    rapl_ = std::make_unique<Rapl>();
    sees = rapl_->joules().has_value();
  }
  look();
  if (!sees) return;
  try {
    thread_ = std::thread([this] { watch(); });
  } catch (const std::system_error&) {  // no more threads: whoever asks then looks
  }
}

PowerWatch::~PowerWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void PowerWatch::watch() {
  std::unique_lock lock(mutex_);
  // The steady clock: setting the time of day makes no look come late.
  while (!stop_.wait_until(lock, Clock::now() + kInterval, [this] { return stopping_; })) {
    lock.unlock();
    look();
    lock.lock();
  }
}

void PowerWatch::look() {
  const std::lock_guard one_at_a_time(looking_);
  CardReading seen;
  std::optional<double> counter;
  if (nvml_ != nullptr) {
    seen = nvml_->read();
    counter = seen.joules;
  } else {
    counter = rapl_->joules();
  }
  const double now_s = std::chrono::duration<double>(Clock::now() - started_).count();

  const std::lock_guard lock(mutex_);
  if (rapl_ != nullptr) {
    const double since_s = now_s - last_s_;
    if (counter && last_joules_ && *counter > *last_joules_ && since_s > 0)
      seen.watts = (*counter - *last_joules_) / since_s;
    last_joules_ = counter;
    last_s_ = now_s;
  }
  // Two meters of different things do not add up: a power for the whole machine leaves the card's alone.
  if (assumed_watts_ > 0)
    meter_.take(now_s, std::nullopt, assumed_watts_);
  else
    meter_.take(now_s, counter, nvml_ != nullptr ? seen.watts : std::nullopt);
  newest_ = std::move(seen);
}

CardReading PowerWatch::newest() const {
  const std::lock_guard lock(mutex_);
  return newest_;
}

Energy PowerWatch::energy(bool look_now) {
  if (look_now || !thread_.joinable()) look();
  const std::lock_guard lock(mutex_);
  Energy energy{.joules = meter_.joules(), .missing_s = meter_.missing_s(), .source = {}};
  if (energy.joules > 0) energy.source = source_locked();
  return energy;
}

std::string PowerWatch::source() const {
  const std::lock_guard lock(mutex_);
  return source_locked();
}

std::string PowerWatch::source_locked() const {
  if (assumed_watts_ > 0) return fmt::format("{:g} W assumed, --watts", assumed_watts_);
  if (rapl_ != nullptr) return last_joules_ || meter_.joules() > 0 ? "processor package only, RAPL" : "";
  const bool counts = meter_.joules_by_counter() > 0, samples = meter_.joules_by_watts() > 0;
  if (counts && samples) return "the card alone, its energy counter and its power";
  if (counts || (!samples && newest_.joules)) return "the card alone, its energy counter";
  return samples || newest_.watts ? "the card alone, its power once a second" : "";
}

}  // namespace qt

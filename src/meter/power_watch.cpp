#include "src/meter/power_watch.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <system_error>

#include <fmt/format.h>

namespace qt {

namespace {

// The steady clock: setting the time of day makes no look come late.
using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kInterval{1};
constexpr std::chrono::duration<double> kPatience{PowerWatch::kPatienceSeconds};

}  // namespace

struct PowerWatch::Looker {
  Looker(DeviceKind kind, const DeviceFacts& facts, double watts) : assumed_watts(watts) {
    if (kind == DeviceKind::cuda)
      nvml = std::make_unique<Nvml>(facts.pci_bus_id);
    else
      rapl = std::make_unique<Rapl>();
  }

  // Asks the devices: by one thread at a time.
  void look();
  // Looks until it is told to stop.
  void watch();
  double now_s() const { return std::chrono::duration<double>(Clock::now() - started).count(); }
  // With the mutex held.
  std::string source() const;

  const double assumed_watts;
  std::unique_ptr<Nvml> nvml;  // of a card
  std::unique_ptr<Rapl> rapl;  // of the processor
  const Clock::time_point started = Clock::now();

  std::mutex mutex;  // of all below
  std::condition_variable changed;
  bool stopping = false, stopped = false, wanted = false;
  std::int64_t looks = 0;
  CardReading newest;
  EnergyMeter meter;
  double last_s = 0;                  // of the newest look
  std::optional<double> last_joules;  // of the processor's counter
};

void PowerWatch::Looker::look() {
  CardReading seen;
  std::optional<double> counter;
  if (nvml != nullptr) {
    seen = nvml->read();
    counter = seen.joules;
  } else {
    counter = rapl->joules();
  }
  const double at_s = now_s();

  const std::lock_guard lock(mutex);
  if (rapl != nullptr) {
    if (counter && last_joules && *counter > *last_joules && at_s > last_s)
      seen.watts = (*counter - *last_joules) / (at_s - last_s);
    last_joules = counter;
  }
  last_s = at_s;
  // Two meters of different things do not add up: a power for the whole machine leaves the card's alone.
  if (assumed_watts > 0)
    meter.take(at_s, std::nullopt, assumed_watts);
  else
    meter.take(at_s, counter, nvml != nullptr ? seen.watts : std::nullopt);
  newest = std::move(seen);
  ++looks;
  wanted = false;
  changed.notify_all();
}

void PowerWatch::Looker::watch() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait_until(lock, Clock::now() + kInterval, [this] { return stopping || wanted; });
    if (stopping) break;
    lock.unlock();
    look();
    lock.lock();
  }
  stopped = true;
  changed.notify_all();
}

std::string PowerWatch::Looker::source() const {
  if (assumed_watts > 0) return fmt::format("{:g} W assumed, --watts", assumed_watts);
  if (rapl != nullptr) return last_joules || meter.joules() > 0 ? "processor package only, RAPL" : "";
  const bool counts = meter.joules_by_counter() > 0, samples = meter.joules_by_watts() > 0;
  if (counts && samples) return "the card alone, its energy counter and its power";
  if (counts || (!samples && newest.joules)) return "the card alone, its energy counter";
  return samples || newest.watts ? "the card alone, its power once a second" : "";
}

PowerWatch::PowerWatch(DeviceKind kind, const DeviceFacts& facts, double assumed_watts)
    : looker_(std::make_shared<Looker>(kind, facts, assumed_watts)) {
  looker_->look();
  const bool sees = looker_->nvml != nullptr ? looker_->nvml->found() : looker_->last_joules.has_value();
  if (!sees) return;
  try {
    thread_ = std::thread([looker = looker_] { looker->watch(); });
  } catch (const std::system_error&) {  // no more threads: the caller's next question reads the meter itself
  }
}

PowerWatch::~PowerWatch() {
  if (!thread_.joinable()) return;
  bool stopped = false;
  {
    std::unique_lock lock(looker_->mutex);
    looker_->stopping = true;
    looker_->changed.notify_all();
    stopped = looker_->changed.wait_for(lock, kPatience, [this] { return looker_->stopped; });
  }
  if (stopped)
    thread_.join();
  else
    thread_.detach();
}

CardReading PowerWatch::newest() const {
  const std::lock_guard lock(looker_->mutex);
  const bool is_stale = looker_->now_s() - looker_->last_s > kStaleSeconds;
  return is_stale && thread_.joinable() ? CardReading() : looker_->newest;
}

Energy PowerWatch::energy(bool look_now) {
  if (!thread_.joinable()) looker_->look();
  std::unique_lock lock(looker_->mutex);
  if (look_now && thread_.joinable()) {
    const std::int64_t before = looker_->looks;
    looker_->wanted = true;
    looker_->changed.notify_all();
    looker_->changed.wait_for(lock, kPatience, [&] { return looker_->looks > before; });
  }
  const EnergyMeter& meter = looker_->meter;
  Energy energy{.joules = meter.joules(), .missing_s = meter.missing_s(), .source = {}};
  if (energy.joules > 0) energy.source = looker_->source();
  return energy;
}

std::string PowerWatch::source() const {
  const std::lock_guard lock(looker_->mutex);
  return looker_->source();
}

}  // namespace qt

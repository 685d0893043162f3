// A backend with truly asynchronous streams: work is queued, and synchronize() runs it in the most
// hostile order that streams and events allow. What is right under every order is ordered by events, not by
// luck.
//
// It computes one op, Add on dense f32 views; every other op throws.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "kernels/backend.h"

namespace qt::test {

class HeapRegion final : public MemoryRegion {
 public:
  HeapRegion(std::unique_ptr<std::byte[]> bytes, std::int64_t count, Space space)
      : MemoryRegion(aligned(bytes.get()), count, space), bytes_(std::move(bytes)) {}

  static constexpr std::int64_t kAlignment = 4096;

 private:
  static std::byte* aligned(std::byte* p) {
    return p + (kAlignment - reinterpret_cast<std::uintptr_t>(p) % kAlignment) % kAlignment;
  }
  std::unique_ptr<std::byte[]> bytes_;
};

class AsyncBackend final : public Backend {
 public:
  // What one queue entry was, in the order of the calls.
  enum class Kind { work, record, wait };
  struct Call {
    Kind kind;
    Stream stream;
    std::uint64_t event = 0;  // of record and wait
    TensorView from, to;      // of a copy
  };

  // `order`: the stream that always goes first, then the second, then the last. ignore_waits breaks the
  // contract on purpose.
  explicit AsyncBackend(std::array<Stream, 3> order, bool ignore_waits = false)
      : Backend(cpu_target(1)), order_(order), ignore_waits_(ignore_waits) {}

  std::string_view name() const override { return "async"; }
  const std::vector<Call>& calls() const { return calls_; }

  std::unique_ptr<MemoryRegion> allocate(Space space, std::int64_t bytes) override {
    auto memory = std::make_unique<std::byte[]>(static_cast<std::size_t>(bytes + HeapRegion::kAlignment));
    return std::make_unique<HeapRegion>(std::move(memory), bytes, space);
  }

  Event record(Stream stream) override {
    const std::uint64_t id = ++last_event_;
    calls_.push_back({Kind::record, stream, id, {}, {}});
    queue(stream).push_back({.blocked_by = 0, .run = [this, id] { happened_.insert(id); }});
    return Event{id};
  }
  void wait(Stream stream, Event event) override {
    calls_.push_back({Kind::wait, stream, event.id, {}, {}});
    if (!ignore_waits_) queue(stream).push_back({.blocked_by = event.id, .run = [] {}});
  }

  void synchronize() override {
    const auto ready = [&](Stream s) {
      const std::deque<Entry>& q = queue(s);
      return !q.empty() && (q.front().blocked_by == 0 || happened_.contains(q.front().blocked_by));
    };
    while (true) {
      const auto next = std::find_if(order_.begin(), order_.end(), ready);
      if (next == order_.end()) break;
      const Entry entry = std::move(queue(*next).front());
      queue(*next).pop_front();
      entry.run();
    }
    for (const std::deque<Entry>& q : queues_) {
      QT_CHECK(q.empty(), PlanError, "a stream waits for an event that never happens");
    }
  }

 private:
  struct Entry {
    std::uint64_t blocked_by = 0;
    std::function<void()> run;
  };

  std::deque<Entry>& queue(Stream stream) { return queues_[static_cast<std::size_t>(stream)]; }

  void do_copy(const TensorView& from, const TensorView& to, Stream stream) override {
    calls_.push_back({Kind::work, stream, 0, from, to});
    queue(stream).push_back({.blocked_by = 0, .run = [from, to] {
                               std::memcpy(to.data, from.data, static_cast<std::size_t>(from.bytes()));
                             }});
  }
  void do_upload(std::span<const std::byte> from, const TensorView& to) override {
    synchronize();
    std::memcpy(to.data, from.data(), from.size());
  }
  void do_download(const TensorView& from, std::span<std::byte> to) override {
    synchronize();
    std::memcpy(to.data(), from.data, to.size());
  }
  std::vector<double> do_read_scalars(const TensorView& view) override {
    synchronize();
    return {view.as<double>(), view.as<double>() + view.elems()};
  }

  void enqueue(const Add& op, Stream stream) {
    calls_.push_back({Kind::work, stream, 0, op.a, op.y});
    queue(stream).push_back({.blocked_by = 0, .run = [op] {
                               const float* a = op.a.as<float>();
                               const float* b = op.b.as<float>();
                               float* y = op.y.as<float>();
                               for (std::int64_t i = 0; i < op.y.elems(); ++i) y[i] = a[i] + b[i];
                             }});
  }
  template <class Op>
  void enqueue(const Op&, Stream) {
    throw PlanError(std::string(Op::kName) + " is not an op of the async backend");
  }
#define QT_ENQUEUE(Op) \
  void do_run(const Op& op, Stream stream) override { enqueue(op, stream); }
  QT_FOR_EACH_OP(QT_ENQUEUE)
#undef QT_ENQUEUE

  std::array<Stream, 3> order_;
  bool ignore_waits_;
  std::array<std::deque<Entry>, 3> queues_;
  std::set<std::uint64_t> happened_;
  std::uint64_t last_event_ = 0;
  std::vector<Call> calls_;
};

// All six priorities of the three streams.
inline std::vector<std::array<Stream, 3>> stream_orders() {
  std::array<Stream, 3> order = {Stream::compute, Stream::copy_in, Stream::copy_out};
  std::vector<std::array<Stream, 3>> all;
  do {
    all.push_back(order);
  } while (std::next_permutation(order.begin(), order.end()));
  return all;
}

}  // namespace qt::test

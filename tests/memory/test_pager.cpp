// Pager: host slabs through device slots. The async backend runs copies and work in every order that the
// events allow, so a missing wait shows in the bytes; the cpu backend shows that paged and resident state are
// the same bits.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/memory/pager.h"
#include "tests/support/async_backend.h"

namespace qt {
namespace {

using test::AsyncBackend;

constexpr std::int64_t kElems = 1000;  // of a part; not a multiple of the alignment

// `count` slabs of two f32 parts each (kElems, and a short one), in host or device memory, with distinct
// values.
struct Slabs {
  Slabs(Backend& backend, std::size_t count, Space space)
      : memory(backend.allocate(space, static_cast<std::int64_t>(count) * kStride)) {
    for (std::size_t i = 0; i < count; ++i) {
      std::byte* base = memory->base() + static_cast<std::int64_t>(i) * kStride;
      Slab slab;
      slab.parts[0] = TensorView(base, DType::f32, {kElems}, space);
      slab.parts[1] = TensorView(base + kElems * 4, DType::f32, {static_cast<std::int64_t>(i) + 1}, space);
      slab.count = 2;
      list.push_back(slab);
      for (std::int64_t k = 0; k < kElems; ++k)
        slab.parts[0].as<float>()[k] = static_cast<float>(100000 * i + static_cast<std::size_t>(k));
      for (std::size_t k = 0; k <= i; ++k) slab.parts[1].as<float>()[k] = -static_cast<float>(k + 1);
    }
  }

  std::vector<float> values() const {
    std::vector<float> all;
    for (const Slab& slab : list) {
      for (const TensorView& part : {slab.parts[0], slab.parts[1]})
        all.insert(all.end(), part.as<float>(), part.as<float>() + part.elems());
    }
    return all;
  }

  static constexpr std::int64_t kStride = 8192;
  std::unique_ptr<MemoryRegion> memory;
  std::vector<Slab> list;
};

// Streams the slabs, doubling every value; before and after, other work uses the bytes that the slots lie on.
void double_all(Backend& backend, Arena& step, std::span<const Slab> slabs, const TensorView& ones) {
  Pager pager(backend);
  const PhaseScope phase(step, "update");
  const auto clobber = [&] {
    const Buffer other = step.alloc("other", MemoryTag::activations, DType::f32, {ones.elems()});
    backend.run(Add{.a = ones, .b = ones, .y = other});
  };
  clobber();
  pager.stream(step, slabs, [&](std::size_t, std::span<const TensorView> parts) {
    for (const TensorView& part : parts) backend.run(Add{.a = part, .b = part, .y = part});
  });
  clobber();
  backend.synchronize();
}

// Records the phase on `recorder` (its work is thrown away) and runs it on `backend` with memory of its
// own.
std::vector<float> doubled(AsyncBackend& backend, std::size_t count, Space space) {
  const auto memory_of = [&](std::int64_t bytes) { return backend.allocate(Space::device, bytes); };
  const auto ones_memory = memory_of(40000);
  const TensorView ones(ones_memory->base(), DType::f32, {10000});
  std::fill_n(ones.as<float>(), 10000, 1.0f);

  const auto null = make_backend("null", backend.target());
  Arena recorder("step", Space::device);
  {
    const Slabs planned(backend, count, space);
    double_all(*null, recorder, planned.list, ones);
  }
  recorder.finish();
  const auto step_memory = memory_of(recorder.plan().bytes);
  Arena step(recorder.plan(), step_memory->base());
  const Slabs slabs(backend, count, space);
  double_all(backend, step, slabs.list, ones);
  EXPECT_EQ(step.used_bytes(), step.plan().bytes);
  return slabs.values();
}

std::vector<float> expected(Backend& backend, std::size_t count) {
  std::vector<float> values = Slabs(backend, count, Space::host).values();
  for (float& v : values) v *= 2;
  return values;
}

TEST(PagerUnderEveryOrder, GivesTheBitsOfResidentSlabs) {
  for (const auto& order : test::stream_orders()) {
    for (const std::size_t count :
         {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{7}}) {
      AsyncBackend backend(order);
      const std::vector<float> want = expected(backend, count);
      EXPECT_EQ(doubled(backend, count, Space::host), want) << count << " slabs";
      EXPECT_EQ(doubled(backend, count, Space::device), want) << count << " resident slabs";
    }
  }
}

TEST(PagerUnderEveryOrder, FailsWhenItsWaitsAreIgnored) {
  int wrong = 0;
  for (const auto& order : test::stream_orders()) {
    AsyncBackend backend(order, /*ignore_waits=*/true);
    wrong += doubled(backend, 7, Space::host) != expected(backend, 7);
  }
  EXPECT_EQ(wrong, 6) << "without waits there is no order in which every copy still meets its data";
}

TEST(Pager, CopiesEachPartOnceEachWay) {
  AsyncBackend backend(test::stream_orders().front());
  backend.reset_totals();
  doubled(backend, 5, Space::host);
  const Slabs slabs(backend, 5, Space::host);
  double bytes = 0;
  for (const Slab& slab : slabs.list)
    bytes += static_cast<double>(slab.parts[0].bytes() + slab.parts[1].bytes());
  EXPECT_EQ(backend.totals().host_to_device_bytes, bytes);
  EXPECT_EQ(backend.totals().device_to_host_bytes, bytes);

  backend.reset_totals();
  doubled(backend, 5, Space::device);
  EXPECT_EQ(backend.totals().host_to_device_bytes, 0);
  EXPECT_EQ(backend.totals().device_to_host_bytes, 0);
}

// The last position of a call before `at` that satisfies f.
template <class Function>
std::size_t last_before(const std::vector<AsyncBackend::Call>& calls, std::size_t at, Function&& f) {
  while (at-- > 0) {
    if (f(calls[at])) return at;
  }
  ADD_FAILURE() << "no such call";
  return 0;
}

TEST(Pager, FillsASlotAgainOnlyAfterItHasDrained) {
  using Kind = AsyncBackend::Kind;
  AsyncBackend backend(test::stream_orders().front());
  doubled(backend, 6, Space::host);
  const std::vector<AsyncBackend::Call>& calls = backend.calls();
  // The copies that fill slots, in order: the first part of each slab.
  std::vector<std::size_t> fills;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const auto& c = calls[i];
    if (c.kind == Kind::work && c.stream == Stream::copy_in && c.from.elems() == kElems) fills.push_back(i);
  }
  ASSERT_EQ(fills.size(), 6u);
  for (std::size_t slab = 0; slab + 2 < fills.size(); ++slab) {
    const auto& fill = calls[fills[slab + 2]];
    EXPECT_EQ(fill.to.data, calls[fills[slab]].to.data) << "two slots take turns";
    EXPECT_NE(fill.to.data, calls[fills[slab + 1]].to.data);
    // Drained: the event recorded after the slot's copy to the host.
    const std::size_t drain = last_before(calls, fills[slab + 2], [&](const auto& c) {
      return c.kind == Kind::work && c.stream == Stream::copy_out && c.from.data == fill.to.data;
    });
    EXPECT_EQ(calls[drain].to.data, calls[fills[slab]].from.data);
    const auto after =
        std::find_if(calls.begin() + static_cast<std::ptrdiff_t>(drain), calls.end(),
                     [](const auto& c) { return c.kind == Kind::record && c.stream == Stream::copy_out; });
    ASSERT_NE(after, calls.end());
    const std::size_t wait = last_before(calls, fills[slab + 2], [](const auto& c) {
      return c.kind == Kind::wait && c.stream == Stream::copy_in;
    });
    EXPECT_EQ(calls[wait].event, after->event)
        << "slab " << slab + 2 << " must wait for the drain of slab " << slab;
  }
}

TEST(Pager, RefusesASlabAboveTheLimit) {
  AsyncBackend backend(test::stream_orders().front());
  const Slabs slabs(backend, 3, Space::host);
  const std::int64_t largest = slabs.list.back().host_bytes();
  EXPECT_EQ(largest, 4096 + 256) << "each part is padded to the request alignment";
  const auto null = make_backend("null", backend.target());
  const auto run = [&](std::int64_t limit) {
    Arena step("step", Space::device);
    const PhaseScope phase(step, "update");
    Pager(*null, limit).stream(step, slabs.list, [](std::size_t, std::span<const TensorView>) {});
  };
  EXPECT_NO_THROW(run(largest));
  EXPECT_THROW(run(largest - 1), PlanError);

  Slab huge;
  huge.parts[0] = TensorView(slabs.memory->base(), DType::u8, {kMaxSlabBytes + 1}, Space::host);
  huge.count = 1;
  Arena step("step", Space::device);
  const PhaseScope phase(step, "update");
  EXPECT_THROW(
      Pager(*null).stream(step, std::span(&huge, 1), [](std::size_t, std::span<const TensorView>) {}),
      PlanError);
}

TEST(Pager, TakesOnlyTwoSlotsAndGivesThemBack) {
  const auto null = make_backend("null", cpu_target(1));
  AsyncBackend backend(test::stream_orders().front());
  const Slabs slabs(backend, 9, Space::host);
  Arena step("step", Space::device);
  {
    const PhaseScope phase(step, "update");
    Pager(*null).stream(step, slabs.list, [](std::size_t, std::span<const TensorView>) {});
    const Buffer after =
        step.alloc("after", MemoryTag::activations, DType::u8, {2 * slabs.list.back().host_bytes()});
  }
  step.finish();
  const PhasePlan* phase = step.plan().find("update");
  EXPECT_EQ(phase->bytes, 2 * slabs.list.back().host_bytes());
  EXPECT_EQ(phase->at_peak[static_cast<std::size_t>(MemoryTag::slots)], phase->bytes);
}

}  // namespace
}  // namespace qt

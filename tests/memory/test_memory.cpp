// Plan and arena: packing of lifetimes against brute force, and that a replay repeats its recording or is
// refused.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "src/memory/arena.h"
#include "src/memory/fixed_buffers.h"
#include "src/memory/plan.h"
#include "tests/support/message_of.h"

namespace qt {
namespace {

constexpr std::int64_t kUnit = kRequestAlignment;
constexpr MemoryTag kAct = MemoryTag::activations;

std::int64_t round_up(std::int64_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }

// --- packing -------------------------------------------------------------------------------------------

struct Lifetime {
  std::int64_t units;  // of kRequestAlignment
  int born;
  int died;
};

// Requests with the given lifetimes, and events in the order of time: what dies at a moment dies before
// anything is born.
PhasePlan phase_of(const std::vector<Lifetime>& lifetimes) {
  PhasePlan phase;
  int end = 0;
  for (const Lifetime& l : lifetimes) end = std::max(end, l.died);
  phase.requests.resize(lifetimes.size());
  for (int time = 0; time <= end; ++time) {
    for (const bool is_alloc : {false, true}) {
      for (std::size_t i = 0; i < lifetimes.size(); ++i) {
        if (time != (is_alloc ? lifetimes[i].born : lifetimes[i].died)) continue;
        Request& r = phase.requests[i];
        (is_alloc ? r.born : r.died) = static_cast<std::int32_t>(phase.events.size());
        r.bytes = lifetimes[i].units * kUnit;
        r.tag = static_cast<MemoryTag>(i % kMemoryTags);
        phase.events.push_back({.is_alloc = is_alloc, .request = static_cast<std::int32_t>(i)});
      }
    }
  }
  return phase;
}

// The first broken promise of a packing, empty when there is none. Shares no arithmetic with the packer.
std::string fault_of(const PhasePlan& phase) {
  std::int64_t top = 0;
  for (std::size_t i = 0; i < phase.requests.size(); ++i) {
    const Request& a = phase.requests[i];
    if (a.offset % kUnit != 0 || a.offset < 0) return fmt::format("request {} lies at {}", i, a.offset);
    top = std::max(top, a.offset + round_up(a.bytes));
    for (std::size_t j = 0; j < i; ++j) {
      const Request& b = phase.requests[j];
      const bool together = std::max(a.born, b.born) < std::min(a.died, b.died);
      const bool overlap = std::max(a.offset, b.offset) < std::min(a.offset + a.bytes, b.offset + b.bytes);
      if (together && overlap) return fmt::format("requests {} and {} share bytes while both live", j, i);
    }
  }
  if (phase.bytes != top) return fmt::format("{} bytes are claimed, {} occupied", phase.bytes, top);

  std::int64_t peak = 0;
  for (std::int32_t time = 0; time < static_cast<std::int32_t>(phase.events.size()); ++time) {
    std::int64_t live = 0;
    for (const Request& r : phase.requests) live += r.born <= time && time < r.died ? round_up(r.bytes) : 0;
    peak = std::max(peak, live);
  }
  if (phase.live_bytes != peak)
    return fmt::format("live_bytes is {}, the largest sum {}", phase.live_bytes, peak);
  if (phase.bytes < peak) return "the packing is smaller than what lives in it";
  const std::int64_t tagged = std::accumulate(phase.at_peak.begin(), phase.at_peak.end(), std::int64_t{0});
  if (tagged != peak) return fmt::format("the tags at the peak sum to {}, not {}", tagged, peak);
  return {};
}

// A recorded phase of random requests and releases.
PhasePlan random_phase(std::uint32_t seed, int events, std::int64_t most_bytes) {
  std::uint32_t state = seed;
  const auto draw = [&](std::uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
  };
  Arena arena("random", Space::device);
  arena.begin("phase");
  std::vector<Buffer> live;
  for (int i = 0; i < events; ++i) {
    if (!live.empty() && draw(100) < 45) {
      const std::size_t victim = draw(static_cast<std::uint32_t>(live.size()));
      live[victim] = std::move(live.back());  // releases what stood there
      live.pop_back();
    } else {
      // Sizes over several magnitudes, as activations and row statistics are.
      const std::int64_t bytes = draw(static_cast<std::uint32_t>(most_bytes >> draw(8)) + 1);
      live.push_back(
          arena.alloc(std::to_string(i), static_cast<MemoryTag>(draw(kMemoryTags)), DType::u8, {bytes}));
    }
  }
  arena.end();
  live.clear();
  arena.finish();
  return arena.plan().phases.front();
}

TEST(Pack, NeverLetsRequestsThatLiveTogetherShareBytes) {
  EXPECT_TRUE(
      rc::check([](std::uint32_t seed) { RC_ASSERT(fault_of(random_phase(seed, 120, 1 << 16)) == ""); }));
  EXPECT_EQ(fault_of(random_phase(7, 4000, 1 << 20)), "");
}

TEST(Pack, IsNotTakenForValidOnceAnythingIsMoved) {
  PhasePlan packed = phase_of({{2, 0, 2}, {1, 1, 3}});
  pack(packed);
  ASSERT_EQ(fault_of(packed), "");
  const auto fault_after = [&](auto&& change) {
    PhasePlan phase = packed;
    change(phase);
    return fault_of(phase);
  };
  EXPECT_NE(fault_after([](PhasePlan& p) { p.requests[1].offset = kUnit; }), "");  // inside the first request
  EXPECT_NE(fault_after([](PhasePlan& p) { p.requests[1].offset += 8; }), "");
  EXPECT_NE(fault_after([](PhasePlan& p) { p.bytes -= kUnit; }), "");
  EXPECT_NE(fault_after([](PhasePlan& p) { p.live_bytes -= kUnit; }), "");
  EXPECT_NE(fault_after([](PhasePlan& p) { std::swap(p.at_peak[0], p.live_bytes); }), "");
}

TEST(Pack, ReachesTheOptimumOfSmallCases) {
  const struct {
    std::vector<Lifetime> lifetimes;
    std::int64_t units;
  } cases[] = {
      {{}, 0},
      {{{3, 0, 1}}, 3},
      {{{4, 0, 1}, {2, 1, 2}}, 4},                          // one after the other: the same bytes
      {{{4, 0, 2}, {2, 1, 3}}, 6},                          // together for a moment
      {{{1, 0, 2}, {2, 1, 4}, {1, 3, 5}}, 3},               // the third takes the place of the first
      {{{5, 0, 10}, {3, 1, 4}, {2, 2, 3}, {4, 5, 9}}, 10},  // a stack
      {{{1, 0, 6}, {2, 1, 2}, {2, 2, 3}, {2, 3, 4}}, 3},    // reuse beside something that stays
      {{{0, 0, 3}, {2, 1, 2}}, 2},                          // nothing takes no room
  };
  for (const auto& c : cases) {
    PhasePlan phase = phase_of(c.lifetimes);
    pack(phase);
    EXPECT_EQ(fault_of(phase), "");
    EXPECT_EQ(phase.bytes, c.units * kUnit) << "case " << (&c - cases);
  }
}

TEST(Pack, GivesTheSameOffsetsAgain) {
  EXPECT_TRUE(rc::check([](std::uint32_t seed) {
    const PhasePlan first = random_phase(seed, 80, 1 << 14);
    PhasePlan second = first;
    for (Request& r : second.requests) r.offset = -1;
    pack(second);
    RC_ASSERT(second.bytes == first.bytes);
    for (std::size_t i = 0; i < first.requests.size(); ++i)
      RC_ASSERT(first.requests[i].offset == second.requests[i].offset);
  }));
}

TEST(Pack, NamesWhatIsAliveAtThePeak) {
  PhasePlan phase = phase_of({{4, 0, 3}, {2, 1, 2}, {1, 2, 3}});
  phase.requests[0].tag = MemoryTag::activations;
  phase.requests[1].tag = MemoryTag::scratch;
  phase.requests[2].tag = MemoryTag::logits;
  pack(phase);
  EXPECT_EQ(phase.at_peak[static_cast<std::size_t>(MemoryTag::activations)], 4 * kUnit);
  EXPECT_EQ(phase.at_peak[static_cast<std::size_t>(MemoryTag::scratch)], 2 * kUnit);
  EXPECT_EQ(phase.at_peak[static_cast<std::size_t>(MemoryTag::logits)], 0);
}

// --- arena ---------------------------------------------------------------------------------------------

// Two phases that differ; `trace` collects the views.
void run_forward(Arena& arena, std::vector<TensorView>* trace = nullptr) {
  const PhaseScope phase(arena, "forward");
  const Buffer x = arena.alloc("x", kAct, DType::f32, {10, 7});
  Buffer h = arena.alloc("h", kAct, DType::bf16, {10, 4, 7});
  if (trace != nullptr) *trace = {x, h};
  h.release();
  const Buffer y = arena.alloc("y", kAct, DType::u8, {3000});
  if (trace != nullptr) trace->push_back(y);
}
void run_update(Arena& arena, std::vector<TensorView>* trace = nullptr) {
  const PhaseScope phase(arena, "update");
  const Buffer slot = arena.alloc("slot", MemoryTag::slots, DType::u8, {9000});
  if (trace != nullptr) *trace = {slot};
}

// An arena that replays both phases on memory of its own.
struct Replay {
  Replay() {
    Arena recorder("test", Space::device);
    run_forward(recorder);
    run_update(recorder);
    recorder.finish();
    plan = recorder.plan();
    memory.resize(static_cast<std::size_t>(plan.bytes));
    arena = std::make_unique<Arena>(plan, memory.data());
  }
  ArenaPlan plan;
  std::vector<std::byte> memory;
  std::unique_ptr<Arena> arena;
};

template <class Function>
std::string plan_error(Function&& f) {
  try {
    f();
  } catch (const PlanError& e) {
    return e.what();
  }
  return "no error";
}

void expect_names(const std::string& message, std::initializer_list<const char*> words) {
  for (const char* word : words)
    EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' in: " << message;
}

TEST(ArenaReplay, HandsOutTheRecordedShapesAtThePlannedOffsets) {
  Replay r;
  std::vector<TensorView> views;
  run_forward(*r.arena, &views);
  const PhasePlan* phase = r.plan.find("forward");
  ASSERT_NE(phase, nullptr);
  ASSERT_EQ(views.size(), phase->requests.size());
  for (std::size_t i = 0; i < views.size(); ++i) {
    EXPECT_EQ(views[i].data - r.memory.data(), phase->requests[i].offset) << phase->requests[i].name;
    EXPECT_EQ(views[i].bytes(), phase->requests[i].bytes);
    EXPECT_EQ(views[i].space, Space::device);
  }
  EXPECT_EQ(views[1].shape(), "[10, 4, 7] bf16");
  EXPECT_EQ(views[2].data, views[1].data) << "y is planned into the bytes of h";
}

TEST(ArenaReplay, TakesPhasesInAnyOrderAndUsesExactlyWhatWasPlanned) {
  Replay r;
  EXPECT_EQ(r.arena->used_bytes(), 0);
  run_forward(*r.arena);
  EXPECT_EQ(r.arena->used_bytes(), r.plan.find("forward")->bytes);
  EXPECT_LT(r.arena->used_bytes(), r.plan.bytes);
  std::vector<TensorView> first, again;
  run_update(*r.arena, &first);
  EXPECT_EQ(r.arena->used_bytes(), r.plan.bytes);
  run_update(*r.arena);
  run_forward(*r.arena);
  run_update(*r.arena, &again);
  EXPECT_EQ(first[0].data, again[0].data);
  EXPECT_EQ(r.arena->used_bytes(), r.plan.bytes) << "repeats take nothing more";
  EXPECT_EQ(r.plan.largest()->name, "update");
}

TEST(ArenaReplay, RefusesWhatDiffersFromTheRecordingAndNamesBoth) {
  const auto replayed = [](auto&& body) {
    Replay r;
    return plan_error([&] {
      const PhaseScope phase(*r.arena, "forward");
      body(*r.arena);
    });
  };
  // another name
  expect_names(replayed([](Arena& a) {
                 a.alloc("z", kAct, DType::f32, {10, 7});
               }),
               {"forward", "'z'", "'x'", "requests"});
  // another size
  expect_names(replayed([](Arena& a) {
                 a.alloc("x", kAct, DType::f32, {11, 7});
               }),
               {"'x' (308 bytes)", "'x' (280 bytes)"});
  // another order
  expect_names(replayed([](Arena& a) { a.alloc("h", kAct, DType::bf16, {10, 4, 7}); }), {"'h'", "'x'"});
  // a request where the recording releases
  expect_names(replayed([](Arena& a) {
                 const Buffer x = a.alloc("x", kAct, DType::f32, {10, 7});
                 const Buffer h = a.alloc("h", kAct, DType::bf16, {10, 4, 7});
                 a.alloc("y", kAct, DType::u8, {3000});
               }),
               {"'y'", "releases 'h'"});
  // a release where the recording requests
  expect_names(replayed([](Arena& a) {
                 a.alloc("x", kAct, DType::f32, {10, 7}).release();
                 a.alloc("h", kAct, DType::bf16, {10, 4, 7});
               }),
               {"'x' is released", "requests 'h'"});
  // releases in another order
  expect_names(replayed([](Arena& a) {
                 Buffer x = a.alloc("x", kAct, DType::f32, {10, 7});
                 Buffer h = a.alloc("h", kAct, DType::bf16, {10, 4, 7});
                 x.release();
                 h.release();
               }),
               {"'x' is released", "releases 'h'"});
  // too few
  expect_names(replayed([](Arena&) {}), {"the phase ends", "requests 'x'"});
  // too many
  Replay r;
  expect_names(plan_error([&] {
                 const PhaseScope phase(*r.arena, "update");
                 { const Buffer slot = r.arena->alloc("slot", MemoryTag::slots, DType::u8, {9000}); }
                 r.arena->alloc("extra", kAct, DType::u8, {1});
               }),
               {"'extra' (1 bytes) was never recorded", "update"});
}

TEST(ArenaReplay, RefusesAPhaseThatWasNeverRehearsed) {
  Replay r;
  expect_names(plan_error([&] { r.arena->begin("backward"); }), {"'backward'", "never rehearsed"});
  EXPECT_NO_THROW(run_forward(*r.arena));
}

TEST(ArenaReplay, GoesOnAfterAPhaseThatWasRefused) {
  Replay r;
  EXPECT_NE(plan_error([&] { const PhaseScope phase(*r.arena, "forward"); }), "no error");
  EXPECT_NO_THROW(run_forward(*r.arena));
}

TEST(ArenaRecording, ChecksARepeatedPhaseAgainstItsFirstRecording) {
  Arena recorder("test", Space::host);
  run_forward(recorder);
  EXPECT_NO_THROW(run_forward(recorder));
  EXPECT_EQ(recorder.plan().phases.size(), 1u);
  expect_names(plan_error([&] {
                 const PhaseScope phase(recorder, "forward");
                 recorder.alloc("x", kAct, DType::f32, {1});
               }),
               {"'x' (4 bytes)", "'x' (280 bytes)"});
}

TEST(ArenaRecording, RefusesRequestsOutsidePhasesAndPhasesInsidePhases) {
  Arena recorder("test", Space::device);
  expect_names(plan_error([&] { recorder.alloc("x", kAct, DType::f32, {1}); }), {"'x'", "outside any phase"});
  expect_names(plan_error([&] { recorder.end(); }), {"never began"});
  recorder.begin("outer");
  expect_names(plan_error([&] { recorder.begin("inner"); }), {"'inner'", "inside phase 'outer'"});
  expect_names(plan_error([&] { recorder.finish(); }), {"complete recording"});
  recorder.end();
  EXPECT_NO_THROW(recorder.finish());
}

TEST(ArenaRecording, GivesAddressesThatBelongToNobodyElse) {
  Arena a("a", Space::device), b("b", Space::device);
  a.begin("p");
  b.begin("p");
  const Buffer one = a.alloc("one", kAct, DType::u8, {1000}), two = a.alloc("two", kAct, DType::u8, {1000});
  const Buffer other = b.alloc("other", kAct, DType::u8, {1000});
  EXPECT_GE(std::abs(two->data - one->data), 1000);
  EXPECT_GE(std::abs(other->data - one->data), std::ptrdiff_t{1} << 40);
}

TEST(PhaseScope, LeavesTheArenaUsableWhenAnExceptionPassesThrough) {
  const auto fail_inside = [](Arena& arena) {
    const PhaseScope phase(arena, "forward");
    const Buffer x = arena.alloc("x", kAct, DType::f32, {10, 7});
    throw std::runtime_error("stopped");
  };
  Replay r;
  EXPECT_THROW(fail_inside(*r.arena), std::runtime_error);
  EXPECT_NO_THROW(run_forward(*r.arena));

  // Half a recording must not become the plan.
  Arena recorder("test", Space::device);
  EXPECT_THROW(fail_inside(recorder), std::runtime_error);
  EXPECT_NO_THROW(run_forward(recorder));
  recorder.finish();
  EXPECT_EQ(recorder.plan().find("forward")->bytes, r.plan.find("forward")->bytes);
}

TEST(Buffers, OfAnEarlierPhaseDoNothingWhenReleasedLate) {
  Arena recorder("test", Space::device);
  Buffer late;
  {
    const PhaseScope phase(recorder, "one");
    late = recorder.alloc("late", kAct, DType::u8, {100});
  }
  {
    const PhaseScope phase(recorder, "two");
    const Buffer x = recorder.alloc("x", kAct, DType::u8, {100});
    late.release();
  }
  recorder.finish();
  const PhasePlan* two = recorder.plan().find("two");
  ASSERT_EQ(two->events.size(), 2u) << "only x was requested and released";

  std::vector<std::byte> memory(static_cast<std::size_t>(recorder.plan().bytes));
  Arena replay(recorder.plan(), memory.data());
  {
    const PhaseScope phase(replay, "one");
    late = replay.alloc("late", kAct, DType::u8, {100});
  }
  EXPECT_NO_THROW({
    const PhaseScope phase(replay, "two");
    const Buffer x = replay.alloc("x", kAct, DType::u8, {100});
    late.release();
  });
}

TEST(Buffers, ReleaseOnceHoweverOftenTheyAreMoved) {
  Arena recorder("test", Space::device);
  {
    const PhaseScope phase(recorder, "p");
    Buffer a = recorder.alloc("a", kAct, DType::u8, {100});
    Buffer b = std::move(a);
    EXPECT_TRUE(b->defined());
    b.release();
    b.release();
    EXPECT_FALSE(b->defined());
    b = recorder.alloc("b", kAct, DType::u8, {100});
    b = recorder.alloc("c", kAct, DType::u8, {100});  // releases b after c was requested
  }
  const std::vector<PlanEvent>& events = recorder.plan().find("p")->events;
  std::string trace;
  for (const PlanEvent& e : events) {
    trace += (e.is_alloc ? "+" : "-") +
             recorder.plan().find("p")->requests[static_cast<std::size_t>(e.request)].name;
  }
  EXPECT_EQ(trace, "+a-a+b+c-b-c");
}

TEST(Buffers, ThatAreKeptLiveToTheEndOfThePhase) {
  Arena recorder("state", Space::host);
  {
    const PhaseScope phase(recorder, "state");
    recorder.keep("a", MemoryTag::master, DType::f32, {100});
    recorder.keep("b", MemoryTag::moments, DType::f32, {100});
  }
  recorder.finish();
  EXPECT_EQ(recorder.plan().bytes, 2 * round_up(400));
  EXPECT_EQ(recorder.plan().space, Space::host);
  std::vector<std::byte> memory(static_cast<std::size_t>(recorder.plan().bytes));
  Arena replay(recorder.plan(), memory.data());
  const PhaseScope phase(replay, "state");
  const TensorView a = replay.keep("a", MemoryTag::master, DType::f32, {100});
  const TensorView b = replay.keep("b", MemoryTag::moments, DType::f32, {100});
  EXPECT_EQ(std::abs(b.data - a.data), round_up(400));
  EXPECT_EQ(a.space, Space::host);
  EXPECT_EQ(replay.used_bytes(), recorder.plan().bytes);
}

// --- buffers that were planned once ----------------------------------------------------------------------

class Fixed : public ::testing::Test {
 protected:
  Fixed() {
    arena.begin("p");
    fixed.add(arena.alloc("x", kAct, DType::f32, {8, 3}), {"x", "out"});
    fixed.add(arena.alloc("h", kAct, DType::f32, {8, 5}), {"h"});
  }

  Arena arena{"test", Space::device};
  FixedBuffers fixed;
};

TEST_F(Fixed, HandOutFirstElementsByNameAndRequestNothing) {
  const Buffer x = fixed.alloc("x", kAct, DType::f32, {2, 3}),
               again = fixed.alloc("out", kAct, DType::f32, {8, 3}),
               h = fixed.alloc("h", kAct, DType::f32, {4, 2, 5});
  EXPECT_EQ(x->data, again->data);
  EXPECT_NE(x->data, h->data);
  EXPECT_EQ(x->shape(), "[2, 3] f32");
  EXPECT_TRUE(x->dense());
  EXPECT_EQ(h->elems(), 40);
  EXPECT_EQ(arena.plan().find("p")->requests.size(), 2u);
}

TEST_F(Fixed, RefuseWhatWasNotPlanned) {
  const auto refusal = [&](const char* name, DType dtype, std::int64_t rows) {
    return test::message_of<PlanError>([&] { fixed.alloc(name, kAct, dtype, {rows, 3}); });
  };
  EXPECT_EQ(refusal("x", DType::f32, 8), "");
  EXPECT_NE(refusal("y", DType::f32, 8).find("'y'"), std::string::npos);
  EXPECT_NE(refusal("x", DType::f32, 9).find("[9, 3]"), std::string::npos);
  EXPECT_NE(refusal("x", DType::bf16, 8).find("bf16"), std::string::npos);
}

TEST_F(Fixed, MeasureScratchUntilTheyHaveIt) {
  for (const std::int64_t bytes : {64, 256, 128})
    EXPECT_EQ(fixed.alloc("any", MemoryTag::scratch, DType::u8, {bytes})->elems(), bytes);
  EXPECT_EQ(fixed.scratch_bytes(), 256);
  fixed.set_scratch(arena.alloc("scratch", MemoryTag::scratch, DType::u8, {fixed.scratch_bytes()}));
  const Buffer a = fixed.alloc("one", MemoryTag::scratch, DType::u8, {256}),
               b = fixed.alloc("other", MemoryTag::scratch, DType::u8, {16});
  EXPECT_EQ(a->data, b->data);
  EXPECT_THROW(fixed.alloc("one", MemoryTag::scratch, DType::u8, {257}), PlanError);
}

}  // namespace
}  // namespace qt

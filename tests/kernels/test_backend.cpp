// What every backend does around an op: memory, copies, the order of streams, numbers
// read back, the names it is made by, and the observer that profiles are made with. The cuda backend runs on
// the simulator.
#include "tests/support/test_backend.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"
#include "kernels/scratch.h"
#include "src/core/half.h"
#include "src/core/rng.h"

namespace qt::test {
namespace {

std::unique_ptr<Backend> backend_named(const std::string& name) {
  return name == "cuda" ? make_cuda_backend(target_of("cuda", 1)) : make_backend(name, cpu_target(1));
}

// Of the backends that hold memory.
class Contract : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr std::int64_t kElems = 1024;
  std::unique_ptr<Backend> backend = backend_named(GetParam());
  std::unique_ptr<MemoryRegion> device = backend->allocate(Space::device, 8 * kElems);
  std::unique_ptr<MemoryRegion> host = backend->allocate(Space::host, 8 * kElems);
  TensorView x{device->base(), DType::f32, {kElems}};
  TensorView y{device->base() + 4 * kElems, DType::f32, {kElems}};
  TensorView there{host->base(), DType::f32, {kElems}, Space::host};
  TensorView back{host->base() + 4 * kElems, DType::f32, {kElems}, Space::host};

  std::vector<float> download(const TensorView& view) {
    std::vector<float> values(static_cast<std::size_t>(view.elems()), -1.0f);
    backend->download(view, std::as_writable_bytes(std::span(values)));
    return values;
  }
  static std::vector<float> counted(float first) {
    std::vector<float> values(kElems);
    std::iota(values.begin(), values.end(), first);
    return values;
  }
};

TEST_P(Contract, MemoryIsZeroAlignedAndOfTheSizeAndSpaceAskedFor) {
  for (const Space space : {Space::device, Space::host}) {
    for (const std::int64_t bytes : {0, 4, 4096, 3 << 20}) {
      const auto region = backend->allocate(space, bytes);
      EXPECT_EQ(region->bytes(), bytes);
      EXPECT_EQ(region->space(), space);
      EXPECT_NE(region->base(), nullptr);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(region->base()) % 4096, 0u);
      if (bytes == 0) continue;
      const auto values = download(TensorView(region->base(), DType::f32, {bytes / 4}, space));
      EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float v) { return v == 0; }));
    }
  }
}

TEST_P(Contract, BytesCrossBetweenAndWithinSpacesUnchangedAndAreCounted) {
  const std::vector<float> values = counted(1);
  backend->upload(std::as_bytes(std::span(values)), there);
  backend->reset_totals();
  backend->copy(there, x);
  backend->copy(x, y);
  backend->copy(y, back);
  EXPECT_EQ(download(back), values);
  EXPECT_EQ(download(y), values);
  EXPECT_EQ(backend->totals().host_to_device_bytes, 4 * kElems);
  EXPECT_EQ(backend->totals().device_to_host_bytes, 2 * 4 * kElems);  // the copy and the last download
}

TEST_P(Contract, EventsOrderStreamsThereAndBack) {
  const std::vector<float> values = counted(1);
  backend->upload(std::as_bytes(std::span(values)), there);
  backend->run(Fill{.x = x, .value = -1});
  backend->wait(Stream::copy_in, backend->record(Stream::compute));
  backend->copy(there, x, Stream::copy_in);
  backend->wait(Stream::compute, backend->record(Stream::copy_in));
  backend->run(Add{.a = x, .b = x, .y = y});
  backend->wait(Stream::copy_out, backend->record(Stream::compute));
  backend->copy(y, back, Stream::copy_out);
  backend->wait(Stream::compute, Event{});  // of nothing: no wait
  backend->synchronize();
  const auto doubled = download(back);
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(doubled[i], 2 * values[i]);
}

// More records than a backend keeps events for: the first still means what it meant.
TEST_P(Contract, AnEventOutlivesThousandsOfLaterOnes) {
  const std::vector<float> values = counted(5);
  backend->upload(std::as_bytes(std::span(values)), there);
  backend->copy(there, x, Stream::copy_in);
  const Event copied = backend->record(Stream::copy_in);
  for (int i = 0; i < 3000; ++i) backend->record(Stream::copy_out);
  backend->wait(Stream::compute, copied);
  backend->run(Add{.a = x, .b = x, .y = y});
  EXPECT_EQ(download(y)[0], 10);
}

TEST_P(Contract, NumbersReadBackAreThoseOfAllEarlierWork) {
  const TensorView sums(device->base(), DType::f64, {3});
  backend->run(Fill{.x = sums, .value = 1});
  backend->run(Fill{.x = sums, .value = 2.5});
  EXPECT_EQ(backend->read_scalars(sums), (std::vector<double>{2.5, 2.5, 2.5}));
  EXPECT_THROW(backend->read_scalars(x), DTypeError);
}

TEST_P(Contract, CopiesOfOtherSizesAndOntoThemselvesAreRefused) {
  EXPECT_THROW(backend->copy(x, TensorView(device->base() + 4 * kElems, DType::f32, {kElems - 1})),
               ShapeError);
  EXPECT_THROW(backend->copy(x, TensorView(device->base() + 4, DType::f32, {kElems})), ShapeError);
  EXPECT_THROW(backend->upload({}, x), ShapeError);
}

TEST_P(Contract, ScratchIsAsLargeAndAlignedAsTheOpAsksFor) {
  constexpr std::int64_t kMany = 1 << 16;
  const auto values = backend->allocate(Space::device, 4 * kMany), sum = backend->allocate(Space::device, 8);
  SumSquares op{.x = TensorView(values->base(), DType::f32, {kMany}),
                .out = TensorView(sum->base(), DType::f64, {1}),
                .scratch = {}};
  const std::int64_t bytes = scratch_bytes(op, backend->target());
  ASSERT_GT(bytes, 0);
  const auto room = backend->allocate(Space::device, bytes + kScratchAlignment);
  const auto run_with = [&](std::int64_t first, std::int64_t size) {
    op.scratch = TensorView(room->base() + first, DType::u8, {size});
    backend->run(op);
  };
  EXPECT_THROW(backend->run(op), ShapeError);
  EXPECT_THROW(run_with(0, bytes - 1), ShapeError);
  EXPECT_THROW(run_with(1, bytes), ShapeError);
  EXPECT_THROW(run_with(kScratchAlignment / 2, bytes), ShapeError);
  EXPECT_NO_THROW(run_with(kScratchAlignment, bytes));
}

// Another algorithm sums in another order: a run that is continued takes over those that it had. The cpu has none
// to choose from.
TEST_P(Contract, AlgorithmsAreTakenOverAsTheyWereGivenAndGiveTheSameBits) {
  constexpr std::int64_t kRows = 16, kTerms = 64;
  std::vector<bf16> drawn;
  for (std::uint64_t i = 0; i < 2 * kRows * kTerms; ++i)
    drawn.push_back(to_bf16(rng_unit(rng_u32(RngStream{.seed = 5}, i)) - 0.5f));
  const auto product = [&](Backend& by) {
    const auto operands = by.allocate(Space::device, 2 * 2 * kRows * kTerms);
    const auto result = by.allocate(Space::device, 4 * kRows * kRows);
    by.upload(std::as_bytes(std::span(drawn)),
              TensorView(operands->base(), DType::bf16, {2 * kRows * kTerms}));
    Matmul op{.a = TensorView(operands->base(), DType::bf16, {kRows, kTerms}),
              .b = TensorView(operands->base() + 2 * kRows * kTerms, DType::bf16, {kRows, kTerms}),
              .c = TensorView(result->base(), DType::f32, {kRows, kRows})};
    const auto scratch = by.allocate(Space::device, scratch_bytes(op, by.target()));
    if (scratch->bytes() > 0) op.scratch = TensorView(scratch->base(), DType::u8, {scratch->bytes()});
    by.run(op);
    std::vector<float> values(kRows * kRows);
    by.download(op.c, std::as_writable_bytes(std::span(values)));
    return values;
  };
  const std::string before = backend->algorithms();
  const auto values = product(*backend);
  EXPECT_NE(values, std::vector<float>(values.size()));
  const std::string chosen = backend->algorithms();
  EXPECT_EQ(chosen == before, std::string(GetParam()) == "cpu") << chosen;

  const auto other = backend_named(GetParam());
  EXPECT_EQ(other->algorithms(), before);
  EXPECT_EQ(other->use_algorithms(chosen), std::vector<std::string>());
  EXPECT_EQ(other->algorithms(), chosen);
  EXPECT_EQ(product(*other), values);
  EXPECT_EQ(other->algorithms(), chosen) << "what was taken over is not chosen anew";

  const auto third = backend_named(GetParam());
  EXPECT_FALSE(third->use_algorithms("another library on another card\nand what it chose\n").empty());
  EXPECT_EQ(third->algorithms(), before);
  EXPECT_EQ(product(*third), values) << "what is left out is chosen anew";
}

INSTANTIATE_TEST_SUITE_P(Every, Contract, ::testing::Values("cpu", "cuda"),
                         [](const auto& b) { return std::string(b.param); });

// In a child: a backend that was added stays for the life of a process.
[[noreturn]] void expect_names_that_were_added() {
  const auto message = [](std::string_view name) {
    try {
      make_backend(name, cpu_target(1));
    } catch (const ConfigError& e) {
      return std::string(e.what()) + " / " + e.hint();
    }
    return std::string();
  };
  EXPECT_NE(message("tpu").find("unknown backend 'tpu' / use one of: cpu, null"), std::string::npos);
  EXPECT_NE(message("cuda").find("has no CUDA backend / use --device cpu"), std::string::npos);
  EXPECT_THROW(probe_device("cuda"), ConfigError);
  add_backend("cuda", make_cuda_backend, [] { return DeviceFacts{.name = "a card", .sm = 86}; });
  EXPECT_EQ(make_backend("cuda", target_of("cuda", 1))->name(), "cuda");
  EXPECT_EQ(probe_device("cuda").name, "a card");
  EXPECT_EQ(probe_device("cpu").name, "");
  std::fprintf(stderr, "%s", ::testing::Test::HasFailure() ? "expectations failed" : "all as expected");
  std::exit(::testing::Test::HasFailure() ? 1 : 0);
}
TEST(Names, AreThoseThatWereAdded) {
  GTEST_FLAG_SET(death_test_style,
                 "threadsafe");  // from the start: a card opened before cannot be used in a fork
  EXPECT_EXIT(expect_names_that_were_added(), ::testing::ExitedWithCode(0), "all as expected");
}

struct Seen {
  std::string op;
  double bytes, seconds;
};

class Observer : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend = backend_named(GetParam());
  std::unique_ptr<MemoryRegion> device = backend->allocate(Space::device, 4096);
  std::unique_ptr<MemoryRegion> host = backend->allocate(Space::host, 4096);
  TensorView x{device->base(), DType::f32, {256}};
  TensorView there{host->base(), DType::f32, {256}, Space::host};
  std::vector<Seen> seen;

  void watch() {
    backend->set_observer([this](const char* op, const Cost& cost, double seconds) {
      seen.push_back({op, cost.read_bytes + cost.written_bytes, seconds});
    });
  }
};

TEST_P(Observer, HearsOfEveryOpAndCopyInOrderWithItsCost) {
  backend->run(Fill{.x = x, .value = 1});
  watch();
  backend->run(Fill{.x = x, .value = 2});
  backend->copy(x, there);
  backend->run(Add{.a = x, .b = x, .y = x});
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].op, "fill");
  EXPECT_EQ(seen[0].bytes, 1024);
  EXPECT_EQ(seen[1].op, "copy");
  EXPECT_EQ(seen[1].bytes, 2048);
  EXPECT_EQ(seen[2].op, "add");
  EXPECT_EQ(seen[2].bytes, 3072);
  for (const Seen& s : seen) EXPECT_GE(s.seconds, 0) << s.op;
}

TEST_P(Observer, HearsNothingOfARefusedOpNorOnceItIsRemoved) {
  watch();
  EXPECT_THROW(backend->run(Fill{}), Error);
  EXPECT_TRUE(seen.empty());
  backend->set_observer({});
  backend->run(Fill{.x = x, .value = 1});
  EXPECT_TRUE(seen.empty());
}

TEST_P(Observer, LeavesTheTotalsAsTheyAreWithoutOne) {
  backend->run(Fill{.x = x, .value = 3});
  const BackendTotals without = backend->totals();
  backend->reset_totals();
  watch();
  backend->run(Fill{.x = x, .value = 3});
  EXPECT_EQ(backend->totals().ops, without.ops);
  EXPECT_EQ(backend->totals().written_bytes, without.written_bytes);
}

// The time is that of the op: a larger one takes longer than nothing.
TEST(ObserverOnTheCpu, TimesTheWorkItself) {
  const auto backend = make_backend("cpu", cpu_target(1));
  const auto memory = backend->allocate(Space::device, 32 << 20);
  const TensorView x(memory->base(), DType::f32, {8 << 20});
  double seconds = 0;
  backend->set_observer([&](const char*, const Cost&, double s) { seconds += s; });
  backend->run(InitNormal{.x = x, .stddev = 1});
  EXPECT_GT(seconds, 1e-3);  // eight million draws: no processor does them in a millisecond
}

INSTANTIATE_TEST_SUITE_P(Every, Observer, ::testing::Values("cpu", "null", "cuda"),
                         [](const auto& b) { return std::string(b.param); });

}  // namespace
}  // namespace qt::test

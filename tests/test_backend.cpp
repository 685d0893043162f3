// What every backend does around an op, whoever computes it: the observer that profiles are made with.
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"

namespace qt::test {
namespace {

struct Seen {
  std::string op;
  double bytes, seconds;
};

class Observer : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend = make_backend(GetParam(), cpu_target(1));
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

INSTANTIATE_TEST_SUITE_P(Every, Observer, ::testing::Values("cpu", "null"),
                         [](const auto& b) { return std::string(b.param); });

}  // namespace
}  // namespace qt::test

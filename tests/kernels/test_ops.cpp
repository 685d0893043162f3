// Runs every proof of tests/support/proofs.h on every backend, and checks that the list leaves no op out.
// With QTRAIN_TEST_ISA=avx2 the kernels see a machine without AVX-512, so that one machine tests both paths.
#include <algorithm>
#include <cstdlib>
#include <set>

#include <gtest/gtest-spi.h>
#include <hwy/targets.h>

#include "tests/support/proofs.h"

namespace qt::test {
namespace {

class IsaLimit : public ::testing::Environment {
 public:
  void SetUp() override {
    const char* wanted = std::getenv("QTRAIN_TEST_ISA");
    if (wanted == nullptr) return;
    ASSERT_STREQ(wanted, "avx2");
    // The matrix library reads its own variable when it is first used.
    ASSERT_NE(std::getenv("DNNL_MAX_CPU_ISA"), nullptr) << "DNNL_MAX_CPU_ISA=AVX2 must be set too";
    hwy::SetSupportedTargetsForTest(hwy::SupportedTargets() & HWY_AVX2);
    ASSERT_EQ(hwy::SupportedTargets() & HWY_AVX2, HWY_AVX2) << "this machine has no AVX2";
  }
};
::testing::Environment* const isa_limit = ::testing::AddGlobalTestEnvironment(new IsaLimit);

struct Subject {
  std::string backend;
  OpProof proof;
  DType dtype;
};

void PrintTo(const Subject& s, std::ostream* os) { *os << s.proof.op << " on " << s.backend; }

std::vector<Subject> subjects() {
  std::vector<Subject> all;
  for (const std::string& backend : computing_backends()) {
    for (const OpProof& proof : op_proofs()) {
      for (const DType dtype : proof.dtypes) all.push_back({backend, proof, dtype});
    }
  }
  return all;
}

class Op : public ::testing::TestWithParam<Subject> {};

TEST_P(Op, StaysWithinItsDerivedBoundsOfTheOracle) {
  const Subject& s = GetParam();
  Case t(s.backend, s.dtype);
  s.proof.body(t);
  EXPECT_LE(t.worst(), 1);
}

// The comparison above can fail: it does, for each of the mistakes that the op is prone to.
TEST_P(Op, IsToldApartFromEachOfItsMutants) {
  const Subject& s = GetParam();
  for (const std::string& mutant : s.proof.mutants) {
    Case t(s.backend, s.dtype, mutant);
    s.proof.body(t);
    EXPECT_GT(t.worst(), 1) << s.proof.op << " " << dtype_name(s.dtype) << " passes although " << mutant;
  }
}

INSTANTIATE_TEST_SUITE_P(Every, Op, ::testing::ValuesIn(subjects()), [](const auto& subject) {
  std::string name = fmt::format("{}{}_{}_{}", subject.param.proof.op, subject.param.proof.part,
                                 dtype_name(subject.param.dtype), subject.param.backend);
  std::replace(name.begin(), name.end(), '-', '_');  // "sim-fused": a name takes no hyphens
  return name;
});

TEST(OpCoverage, EveryOpHasAProofAndAMutant) {
  std::set<std::string> proven;
  for (const OpProof& proof : op_proofs()) {
    EXPECT_FALSE(proof.dtypes.empty()) << proof.op;
    if (!proof.mutants.empty()) proven.insert(proof.op);
  }
  const auto missing = [&](const char* op) {
    return proven.count(op) == 1 ? std::string()
                                 : std::string(op) + " has no proof in tests/kernels/test_ops_*.cpp\n";
  };
  std::string all_missing;
#define QT_LOOK_FOR(OpType) all_missing += missing(OpType::kName);
  QT_FOR_EACH_OP(QT_LOOK_FOR)
#undef QT_LOOK_FOR
  EXPECT_EQ(all_missing, "");
}

TEST(OpCoverage, NoMutantIsListedTwice) {
  std::set<std::string> seen;
  for (const OpProof& proof : op_proofs()) {
    for (const std::string& mutant : proof.mutants) {
      EXPECT_TRUE(seen.insert(fmt::format("{} {} {}", proof.op, dtype_name(proof.dtypes[0]), mutant)).second)
          << proof.op << ": " << mutant;
    }
  }
}

// ---- the fixture itself ----

// What gtest would have reported for `body`.
template <class Body>
std::string failures_of(Body&& body) {
  ::testing::TestPartResultArray results;
  {
    ::testing::ScopedFakeTestPartResultReporter reporter(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &results);
    body();
  }
  std::string all;
  for (int i = 0; i < results.size(); ++i) all += std::string(results.GetTestPartResult(i).message()) + "\n";
  return all;
}

TEST(Fixture, SeesAWriteBesideABuffer) {
  Case t("cpu", DType::f32);
  t.next("one element too many");
  TensorView x = t.out({10});
  EXPECT_EQ(failures_of([&] { t.run(Fill{.x = x, .value = 1}); }), "");
  x.sizes[0] = 11;
  EXPECT_NE(failures_of([&] { t.run(Fill{.x = x, .value = 1}); }).find("wrote at byte 40"),
            std::string::npos);
}

TEST(Fixture, SeesAWriteIntoAnInputAndBetweenPitchedRows) {
  Case t("cpu", DType::f32);
  t.next("an input");
  const TensorView in = t.in(std::vector<double>(10, 3.0), {10});
  EXPECT_NE(failures_of([&] { t.run(Fill{.x = in, .value = 1}); }).find("wrote"), std::string::npos);
  t.next("a gap");
  const TensorView rows = t.out({2, 3}, DType::f32, 5);
  EXPECT_NE(failures_of([&] {
              t.run(Fill{.x = TensorView(rows.data, DType::f32, {8}), .value = 1});
            }).find("wrote at byte 12"),
            std::string::npos);
}

TEST(Fixture, SeesAnElementLeftUnwrittenAndAResultThatDependsOnRubbish) {
  Case t("cpu", DType::f32);
  t.next("the last element is left out");
  const TensorView x = t.out({10});
  EXPECT_NE(failures_of([&] { t.run(Fill{.x = x.flat(0, 9), .value = 1}); }).find("other rubbish"),
            std::string::npos);
  EXPECT_TRUE(std::isnan(t.values(x)[9]));
  t.next("reads its output");
  const TensorView y = t.out({10});
  EXPECT_NE(failures_of([&] {
              t.run(Add{.a = y, .b = t.in(std::vector<double>(10, 3.0), {10}), .y = y});
            }).find("other rubbish"),
            std::string::npos);
}

TEST(Fixture, CountsANaNAndAnEndlessBoundAsFailures) {
  Ratio ratio;
  ratio.take(1, 1.5, 1, 0);
  EXPECT_EQ(ratio.worst, 0.5);
  ratio.take(NAN, 1, 1, 1);
  EXPECT_EQ(ratio.worst, INFINITY);
  Ratio endless, zero;
  endless.take(1, 1, INFINITY, 0);
  EXPECT_EQ(endless.worst, INFINITY);
  zero.take(-0.0, 0.0, 0, 0);
  EXPECT_EQ(zero.worst, INFINITY);  // bits are compared where nothing is tolerated
}

}  // namespace
}  // namespace qt::test

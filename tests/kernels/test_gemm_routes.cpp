// The lookup of measured GEMM routes: which row of a table answers for a product, and what packed_route()
// makes of it.
#include <vector>

#include <gtest/gtest.h>

#include "kernels/gemm_routes.h"
#include "kernels/scratch.h"

namespace qt {
namespace {

constexpr GemmLayout kForward = GemmLayout::nt, kInputGradient = GemmLayout::nn;

// Fused wins at 1,024 tokens, is 5 % slower at 4,096 and more at 16,384.
const std::vector<MeasuredProduct> kTable = {
    {90, kForward, 1024, 2048, 2048, 50, 100},
    {90, kForward, 4096, 2048, 2048, 105, 100},
    {90, kForward, 16384, 2048, 2048, 105.1, 100},
    {90, kForward, 16384, 8192, 2048, 90, 100},
};

std::optional<GemmRoute> route(std::int64_t M, std::int64_t N = 2048, std::int64_t K = 2048, int sm = 90,
                               GemmLayout layout = kForward, DType tokens = DType::bf16) {
  return measured_route(kTable, sm, tokens, layout, M, N, K);
}

PackedMatmul product(std::int64_t M) {
  PackedMatmul op;
  op.x = TensorView(nullptr, DType::bf16, {M, 2048});
  op.w = PackedView{.format = FormatId::nf4, .N = 2048, .K = 2048};
  op.y = TensorView(nullptr, DType::bf16, {M, 2048});
  return op;
}

TEST(GemmRoutes, AMeasuredProductTakesItsFasterRoute) {
  EXPECT_EQ(route(1024), GemmRoute::fused);
  EXPECT_EQ(route(16384), GemmRoute::scratch);
}

TEST(GemmRoutes, FusedIsTakenUpToFivePercentSlowerBecauseItNeedsNoScratch) {
  EXPECT_EQ(route(4096), GemmRoute::fused);
  EXPECT_EQ(route(16384), GemmRoute::scratch);  // 5.1 %
}

TEST(GemmRoutes, AProductBetweenTwoMeasurementsTakesTheNearerByFactor) {
  EXPECT_EQ(route(16383), GemmRoute::scratch);
  EXPECT_EQ(route(8193), GemmRoute::scratch);  // 8,192 is as far from 4,096 as from 16,384
  EXPECT_EQ(route(8191), GemmRoute::fused);
}

TEST(GemmRoutes, OfTwoAsNearTheFirstRowCounts) {
  EXPECT_EQ(route(8192), GemmRoute::fused);
  const std::vector<MeasuredProduct> turned(kTable.rbegin(), kTable.rend());
  EXPECT_EQ(measured_route(turned, 90, DType::bf16, kForward, 8192, 2048, 2048), GemmRoute::scratch);
}

TEST(GemmRoutes, NearnessCountsAllThreeDimensions) {
  EXPECT_EQ(route(16384, 6000), GemmRoute::fused);  // 8,192 rows are nearer than 2,048
  EXPECT_EQ(route(16384, 2100), GemmRoute::scratch);
}

TEST(GemmRoutes, MoreThanAFactorOfTwoAwayIsNotMeasured) {
  EXPECT_EQ(route(512), GemmRoute::fused);
  EXPECT_EQ(route(511), std::nullopt);
  EXPECT_EQ(route(32768), GemmRoute::scratch);
  EXPECT_EQ(route(32769), std::nullopt);
  EXPECT_EQ(route(1024, 1023), std::nullopt);
  EXPECT_EQ(route(1024, 2048, 4097), std::nullopt);
}

TEST(GemmRoutes, AnotherCardAnotherLayoutAndTokensInF32AreNotMeasured) {
  EXPECT_EQ(route(1024, 2048, 2048, 89), std::nullopt);
  EXPECT_EQ(route(1024, 2048, 2048, 90, kInputGradient), std::nullopt);
  EXPECT_EQ(route(1024, 2048, 2048, 90, kForward, DType::f32), std::nullopt);
}

TEST(GemmRoutes, NothingIsMeasuredOfAnEmptyTableOrProduct) {
  EXPECT_EQ(measured_route({}, 90, DType::bf16, kForward, 1024, 2048, 2048), std::nullopt);
  EXPECT_EQ(route(0), std::nullopt);
}

TEST(GemmRoutes, EveryCommittedRowIsAMeasurementThatAnswersForItself) {
  for (const MeasuredProduct& p : measured_products()) {
    EXPECT_GE(p.sm, 80);
    EXPECT_NE(p.layout, GemmLayout::tn);
    EXPECT_GT(p.M * p.N * p.K, 0);
    EXPECT_GT(p.fused_us, 0);
    EXPECT_GT(p.scratch_us, 0);
    const MeasuredProduct alone[] = {p};
    EXPECT_EQ(measured_route(p.sm, DType::bf16, p.layout, p.M, p.N, p.K),
              measured_route(alone, p.sm, DType::bf16, p.layout, p.M, p.N, p.K))
        << p.M << " x " << p.N << " x " << p.K << ": measured twice";
  }
}

// sm_87 is a real compute capability that no table here has.
TEST(GemmRoutes, WithoutMeasurementsFewTokensAreFusedAndManyUseScratch) {
  EXPECT_EQ(packed_route(product(2047), cuda_target(87)), GemmRoute::fused);
  EXPECT_EQ(packed_route(product(2048), cuda_target(87)), GemmRoute::scratch);
  EXPECT_GT(scratch_bytes(product(2048), cuda_target(87)), 0);
}

TEST(GemmRoutes, AWrittenRouteIsTakenWhateverWasMeasured) {
  for (const GemmRoute wanted : {GemmRoute::fused, GemmRoute::scratch}) {
    for (const int sm : {80, 90, 120}) {
      Target target = cuda_target(sm);
      target.gemm = wanted;
      for (const std::int64_t M : {64, 2048, 16384}) EXPECT_EQ(packed_route(product(M), target), wanted);
    }
  }
}

TEST(GemmRoutes, TablesAreToldApartByWhatTheySayOfACard) {
  const std::uint64_t whole = routes_fingerprint(kTable, 90);
  EXPECT_NE(whole, 0u);
  EXPECT_EQ(routes_fingerprint(kTable, 89), 0u);
  std::vector<MeasuredProduct> other = kTable;
  other[1].fused_us += 1;
  EXPECT_NE(routes_fingerprint(other, 90), whole);
  other = kTable;
  other.push_back({89, kForward, 1, 1, 1, 1, 1});
  EXPECT_EQ(routes_fingerprint(other, 90), whole);
}

}  // namespace
}  // namespace qt

// Matrix products of the cuda backend on the simulator: that every route and every size of tile sees the same
// weights and gives the same bits, that the tiles in shared memory have no bank conflicts, and the text of
// the library's algorithms.
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/blas_algorithms.h"
#include "kernels/cuda/gemm_tile.cuh"
#include "kernels/scratch.h"
#include "kernels/sim/sim.h"
#include "quant/nf4.h"
#include "quant/tiles.h"
#include "tests/support/sim_rig.h"
#include "tests/support/test_backend.h"

namespace qt::test {
namespace {

using std::size_t;

// Cards that differ in what their backends choose: on the one with a single multiprocessor every tile is
// large that can be.
enum class Way { small_tiles, large_tiles, scratch };
constexpr Way kWays[] = {Way::small_tiles, Way::large_tiles, Way::scratch};
constexpr int kManyMultiprocessors = 1000;

Backend& backend_for(Way way) {
  static std::map<Way, std::unique_ptr<Backend>> all;
  auto& backend = all[way];
  if (!backend) {
    const sim::Card before = sim::card();
    sim::card().multiprocessors = way == Way::large_tiles ? 1 : kManyMultiprocessors;
    Target target = cuda_target(86);
    target.gemm = way == Way::scratch ? GemmRoute::scratch : GemmRoute::fused;
    backend = make_cuda_backend(target);
    sim::card() = before;
  }
  return *backend;
}

// Device memory with something in it, for as long as the object lives.
template <class T>
class OnDevice {
 public:
  OnDevice(Backend& backend, const std::vector<T>& x)
      : backend_(backend),
        count_(static_cast<std::int64_t>(x.size())),
        region_(backend.allocate(Space::device, count_ * static_cast<std::int64_t>(sizeof(T)))) {
    backend.upload(std::as_bytes(std::span(x)), view({count_}));
  }
  TensorView view(std::initializer_list<std::int64_t> shape) const {
    return TensorView(region_->base(), dtype_of<T>(), shape);
  }
  std::vector<T> read() const {
    std::vector<T> x(static_cast<size_t>(count_));
    backend_.download(view({count_}), std::as_writable_bytes(std::span(x)));
    return x;
  }

 private:
  Backend& backend_;
  std::int64_t count_;
  std::unique_ptr<MemoryRegion> region_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
std::vector<T> random(size_t n, unsigned seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> draw;
  std::vector<T> x(n);
  for (T& v : x) v = from_float<T>(draw(bits));
  return x;
}

struct PackedWeight {
  std::int64_t N, K;
  PackedLayout layout = PackedLayout::flat;
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;

  PackedWeight(std::int64_t rows, std::int64_t cols) : N(rows), K(cols) {
    std::mt19937 bits(7);
    codes.resize(static_cast<size_t>(N * K + 1) / 2);
    for (auto& byte : codes) byte = static_cast<std::uint8_t>(bits());
    absmax.resize(static_cast<size_t>(N * K + 63) / 64);
    for (auto& scale : absmax) scale = 0.01f + static_cast<float>(bits() % 1000) * 1.2345e-4f;
  }
  // The same weights with codes and scales in tiles.
  PackedWeight tiled() const {
    PackedWeight t = *this;
    t.layout = PackedLayout::tiles;
    flat_to_tiles(N, K, codes, t.codes);
    flat_to_tiles(N, K, absmax, t.absmax);
    return t;
  }
  template <class T>
  std::vector<T> canonical() const {
    std::vector<T> w(static_cast<size_t>(N * K));
    Nf4::dequantize(codes.data(), absmax.data(), 0, std::span<T>(w));
    return w;
  }
};

template <class T>
std::vector<T> packed_product(Way way, GemmLayout layout, const PackedWeight& w, const std::vector<T>& x,
                              const std::vector<float>& bias = {}) {
  Backend& backend = backend_for(way);
  const std::int64_t inner = layout == GemmLayout::nt ? w.K : w.N, cols = w.N + w.K - inner;
  const std::int64_t M = static_cast<std::int64_t>(x.size()) / inner;
  const OnDevice<T> x_on(backend, x), y_on(backend, std::vector<T>(static_cast<size_t>(M * cols)));
  const OnDevice<std::uint8_t> codes(backend, w.codes);
  const OnDevice<float> absmax(backend, w.absmax), bias_on(backend, bias);
  PackedMatmul op{.x = x_on.view({M, inner}), .y = y_on.view({M, cols}), .layout = layout};
  op.w.format = FormatId::nf4;
  op.w.N = w.N;
  op.w.K = w.K;
  op.w.layout = w.layout;
  op.w.codes = codes.view({static_cast<std::int64_t>(w.codes.size())});
  op.w.absmax = absmax.view({static_cast<std::int64_t>(w.absmax.size())});
  if (!bias.empty()) op.bias = bias_on.view({cols});
  const std::int64_t scratch_size = scratch_bytes(op, backend.target());
  const OnDevice<std::uint8_t> scratch(backend, std::vector<std::uint8_t>(static_cast<size_t>(scratch_size)));
  if (scratch_size > 0) op.scratch = scratch.view({scratch_size});
  backend.run(op);
  return y_on.read();
}

template <class T>
std::vector<T> identity(std::int64_t n) {
  std::vector<T> x(static_cast<size_t>(n * n), from_float<T>(0));
  for (std::int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i * n + i)] = from_float<T>(1);
  return x;
}

template <class T>
std::vector<T> transposed(const std::vector<T>& x, std::int64_t rows) {
  const auto cols = static_cast<std::int64_t>(x.size()) / rows;
  std::vector<T> y;
  for (std::int64_t c = 0; c < cols; ++c) {
    for (std::int64_t r = 0; r < rows; ++r) y.push_back(x[static_cast<size_t>(r * cols + c)]);
  }
  return y;
}

// A row of x with a single one picks a row or a column of the weight, and sums of zeros and one term are
// exact: what comes out are the weight's own bits.
template <class T>
void expect_canonical_weights() {
  // Whole blocks and tiles; whole blocks only; rows that begin inside blocks, and inside bytes.
  for (const auto& [N, K] : {std::pair{128, 64}, {72, 192}, {136, 128}, {70, 36}, {33, 129}, {1, 1}}) {
    const PackedWeight w(N, K);
    const std::vector<T> want = w.canonical<T>();
    for (const Way way : kWays) {
      EXPECT_TRUE(same_bits(packed_product(way, GemmLayout::nt, w, identity<T>(K)), transposed(want, N)))
          << "nt " << N << " x " << K << ", way " << static_cast<int>(way);
      EXPECT_TRUE(same_bits(packed_product(way, GemmLayout::nn, w, identity<T>(N)), want))
          << "nn " << N << " x " << K << ", way " << static_cast<int>(way);
    }
  }
}

TEST(PackedGemm, SeesTheCanonicalWeightBitForBitInBothDirectionsByEveryWayInBf16) {
  expect_canonical_weights<bf16>();
}
TEST(PackedGemm, SeesTheCanonicalWeightBitForBitInBothDirectionsByEveryWayInF32) {
  expect_canonical_weights<float>();
}

template <class T>
void expect_canonical_weights_from_tiles() {
  for (const auto& [N, K] : {std::pair{64, 64}, {128, 192}, {192, 64}}) {
    const PackedWeight w(N, K), tiled = w.tiled();
    ASSERT_NE(w.codes, tiled.codes);
    const std::vector<T> want = w.canonical<T>();
    for (const Way way : kWays) {
      EXPECT_TRUE(same_bits(packed_product(way, GemmLayout::nt, tiled, identity<T>(K)), transposed(want, N)))
          << "nt " << N << " x " << K << ", way " << static_cast<int>(way);
      EXPECT_TRUE(same_bits(packed_product(way, GemmLayout::nn, tiled, identity<T>(N)), want))
          << "nn " << N << " x " << K << ", way " << static_cast<int>(way);
    }
  }
}

TEST(PackedGemm, SeesTheCanonicalWeightInTilesToo) {
  expect_canonical_weights_from_tiles<bf16>();
  expect_canonical_weights_from_tiles<float>();
}

TEST(PackedGemm, GivesTheSameBitsFromTilesAsFromTheFlatLayout) {
  const PackedWeight w(192, 128), tiled = w.tiled();
  const auto x = random<bf16>(70 * 128, 1), dy = random<bf16>(70 * 192, 2);
  for (const Way way : kWays) {
    EXPECT_TRUE(
        same_bits(packed_product(way, GemmLayout::nt, w, x), packed_product(way, GemmLayout::nt, tiled, x)));
    EXPECT_TRUE(same_bits(packed_product(way, GemmLayout::nn, w, dy),
                          packed_product(way, GemmLayout::nn, tiled, dy)));
  }
}

TEST(PackedGemm, OfAnUnroundedOrOtherwisePackedWeightWouldBeTold) {
  const PackedWeight w(72, 64);
  const auto got = packed_product(Way::small_tiles, GemmLayout::nn, w, identity<float>(72));
  std::vector<float> unrounded(got.size());
  Nf4::dequantize_unrounded(w.codes.data(), w.absmax.data(), 0, unrounded);
  EXPECT_FALSE(same_bits(got, unrounded));
  PackedWeight other = w;
  other.codes[70] ^= 1;
  EXPECT_FALSE(same_bits(got, other.canonical<float>()));
}

TEST(PackedGemm, GivesTheSameBitsWithSmallAndLargeTiles) {
  constexpr std::int64_t M = 130, N = 200, K = 192;
  ASSERT_TRUE(cuda::large_tiles(M, N, 1));
  ASSERT_FALSE(cuda::large_tiles(M, N, kManyMultiprocessors));
  const PackedWeight w(N, K);
  const auto x = random<bf16>(M * K, 1), dy = random<bf16>(M * N, 2);
  const auto bias = random<float>(N, 3);
  const auto y = packed_product(Way::small_tiles, GemmLayout::nt, w, x, bias);
  EXPECT_TRUE(same_bits(y, packed_product(Way::large_tiles, GemmLayout::nt, w, x, bias)));
  const auto dx = packed_product(Way::small_tiles, GemmLayout::nn, w, dy);
  EXPECT_TRUE(same_bits(dx, packed_product(Way::large_tiles, GemmLayout::nn, w, dy)));
}

// 32 MiB of scratch hold 4096 rows, or 3968 columns.
TEST(PackedGemm, OfAMatrixLargerThanItsScratchGoesSliceBySlice) {
  constexpr std::int64_t N = 4168, K = 4096, kRow = 4101, kCol = 4090;
  const PackedWeight w(N, K);
  const auto weight = w.canonical<bf16>();
  std::vector<bf16> x(K), dy(N), want;
  x[kCol] = dy[kRow] = to_bf16(1);
  for (std::int64_t n = 0; n < N; ++n) want.push_back(weight[static_cast<size_t>(n * K + kCol)]);
  EXPECT_TRUE(same_bits(packed_product(Way::scratch, GemmLayout::nt, w, x), want));
  want.assign(weight.begin() + kRow * K, weight.begin() + (kRow + 1) * K);
  EXPECT_TRUE(same_bits(packed_product(Way::scratch, GemmLayout::nn, w, dy), want));
}

template <class T>
std::vector<T> biased_product(Way way, std::int64_t M, std::int64_t N, std::int64_t K) {
  Backend& backend = backend_for(way);
  const OnDevice<T> a(backend, random<T>(static_cast<size_t>(M * K), 4)),
      b(backend, random<T>(static_cast<size_t>(N * K), 5)),
      c(backend, std::vector<T>(static_cast<size_t>(M * N)));
  const OnDevice<float> bias(backend, random<float>(static_cast<size_t>(N), 6));
  backend.run(Matmul{.a = a.view({M, K}), .b = b.view({N, K}), .c = c.view({M, N}), .bias = bias.view({N})});
  return c.read();
}

TEST(BiasedGemm, GivesTheSameBitsWithSmallAndLargeTiles) {
  EXPECT_TRUE(same_bits(biased_product<bf16>(Way::small_tiles, 130, 200, 136),
                        biased_product<bf16>(Way::large_tiles, 130, 200, 136)));
  EXPECT_TRUE(same_bits(biased_product<f16>(Way::small_tiles, 130, 200, 136),
                        biased_product<f16>(Way::large_tiles, 130, 200, 136)));
}

// ---- shared memory ----

void expect_no_conflicts(const std::string& what, size_t sites_at_least, const std::function<void()>& run) {
  const sim::BankCounter counter;
  run();
  EXPECT_GE(counter.sites().size(), sites_at_least) << what;
  for (const sim::BankSite& site : counter.sites())
    EXPECT_EQ(site.conflicts(), 0) << what << " at " << site.place << ", " << site.accesses << " accesses";
}

// Copies and look-ups among them: sixteen code points in sixteen banks, where equal ones are one word.
TEST(GemmTile, HasNoBankConflictsInEitherDirection) {
  const PackedWeight blocks(136, 192), any(70, 100), tiles = PackedWeight(192, 128).tiled();
  for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn}) {
    const bool nt = layout == GemmLayout::nt;
    const auto x = random<bf16>(static_cast<size_t>(130 * (nt ? 192 : 136)), 1);
    const auto short_x = random<bf16>(static_cast<size_t>(33 * (nt ? 100 : 70)), 1);
    // Code points written and read, cp.async, unit written, ldmatrix of both operands.
    expect_no_conflicts("small tiles", 5, [&] { packed_product(Way::small_tiles, layout, blocks, x); });
    expect_no_conflicts("large tiles", 5, [&] { packed_product(Way::large_tiles, layout, blocks, x); });
    expect_no_conflicts("any K", 5, [&] { packed_product(Way::small_tiles, layout, any, short_x); });
    const auto tiles_x = random<bf16>(static_cast<size_t>(130 * (nt ? 128 : 192)), 1);
    for (const Way way : kWays)
      expect_no_conflicts("tiles", 4, [&] { packed_product(way, layout, tiles, tiles_x); });
    expect_no_conflicts("expansion", 4, [&] { packed_product(Way::scratch, layout, blocks, x); });
  }
  expect_no_conflicts("biased", 4, [] { biased_product<bf16>(Way::small_tiles, 130, 200, 136); });
  expect_no_conflicts("biased, large", 4, [] { biased_product<f16>(Way::large_tiles, 130, 200, 136); });
  expect_no_conflicts("biased, any K", 4, [] { biased_product<bf16>(Way::small_tiles, 70, 33, 37); });
}

// ---- the library's twin ----

class BlasTwin : public ::testing::Test {
 protected:
  void multiply(cuda::Blas& blas, std::int64_t M) {
    blas.multiply(
        {.M = M, .N = 3, .R = 2, .a = a_, .b = b_, .c = c_, .a_pitch = 2, .b_pitch = 3, .c_pitch = 3},
        stream_.get());
    EXPECT_EQ(cudaStreamSynchronize(stream_.get()), cudaSuccess);
  }

  SimStream stream_;
  alignas(256) float a_[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  alignas(256) float b_[6] = {1, 0, 2, 0, 1, 3};
  alignas(256) float c_[12] = {};
};

TEST_F(BlasTwin, WritesItsAlgorithmsAsTextThatAnotherTakesOver) {
  const auto blas = cuda::make_blas(nullptr, 0), next = cuda::make_blas(nullptr, 0);
  const std::string none = blas->algorithms();
  multiply(*blas, 4);
  multiply(*blas, 2);
  multiply(*blas, 4);
  const std::string text = blas->algorithms();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);  // the library, and two kinds of product
  EXPECT_EQ(next->algorithms(), none);
  EXPECT_EQ(next->use_algorithms(text), std::vector<std::string>{});
  EXPECT_EQ(next->algorithms(), text);
  EXPECT_EQ(next->use_algorithms(""), std::vector<std::string>{});  // a checkpoint that has none
}

TEST_F(BlasTwin, LeavesOutAndReportsWhatDoesNotFit) {
  const auto blas = cuda::make_blas(nullptr, 0);
  multiply(*blas, 4);
  const std::string text = blas->algorithms();
  const size_t line = text.find('\n') + 1, colon = text.find(':');
  const auto refused = [](const std::string& altered) {
    const auto fresh = cuda::make_blas(nullptr, 0);
    const std::string before = fresh->algorithms();
    const auto reasons = fresh->use_algorithms(altered);
    EXPECT_EQ(fresh->algorithms(), before) << altered;
    return reasons.size() == 1 ? reasons[0] : std::string();
  };
  EXPECT_NE(refused("another card\n" + text.substr(line)).find("'another card'"), std::string::npos);
  EXPECT_NE(
      refused(text.substr(0, colon) + ": 00\n").find("product f32 [4, 2] x [2, 3] into f32: there is no"),
      std::string::npos);
  for (const std::string& altered :
       {text.substr(0, text.size() - 2) + "\n", text.substr(0, text.size() - 2) + "g\n",
        text.substr(0, line) + "7 " + text.substr(line), text.substr(0, line) + "-" + text.substr(line),
        text.substr(0, line) + "x\n", text.substr(0, colon) + "\n", text.substr(0, line) + "\n"}) {
    EXPECT_NE(refused(altered).find("cannot be read"), std::string::npos) << altered;
  }
  // What is damaged does not spoil what is not.
  const auto fresh = cuda::make_blas(nullptr, 0);
  EXPECT_EQ(fresh->use_algorithms(text + "x\n").size(), 1u);
  EXPECT_EQ(fresh->algorithms(), text);
}

TEST_F(BlasTwin, OfABackendComesWithTheTableOfRoutesWhereThatDecides) {
  Target target = cuda_target(86);
  const auto measured = make_cuda_backend(target);
  const std::string text = measured->algorithms();
  ASSERT_EQ(text.find("routes "), 0u) << text;
  EXPECT_EQ(measured->use_algorithms(text), std::vector<std::string>{});
  std::string other = text;
  other[other.find('\n') - 1] ^= 1;
  const std::vector<std::string> reasons = measured->use_algorithms(other);
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("routes"), std::string::npos);
  target.gemm = GemmRoute::fused;
  const auto named = make_cuda_backend(target);
  EXPECT_EQ("routes" + named->algorithms(), "routes" + text.substr(text.find('\n') + 1));
  EXPECT_EQ(named->use_algorithms(other), std::vector<std::string>{});  // --gemm has changed, and is listed
}

TEST_F(BlasTwin, DescribesAProductByItsOperandsAsTheyLie) {
  cuda::BlasKind kind{.M = 4096, .N = 512, .R = 2048, .operands = DType::bf16};
  EXPECT_EQ(cuda::describe(kind), "bf16 [4096, 2048] x [2048, 512] into f32");
  kind.b_transposed = kind.accumulate = true;
  EXPECT_EQ(cuda::describe(kind), "bf16 [4096, 2048] x [512, 2048]^T into f32, accumulated");
  kind.a_transposed = true;
  kind.b_transposed = kind.accumulate = false;
  kind.result = DType::bf16;
  EXPECT_EQ(cuda::describe(kind), "bf16 [2048, 4096]^T x [2048, 512] into bf16");
}

}  // namespace
}  // namespace qt::test

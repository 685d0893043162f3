// Every op of kernels/ops.h at the shapes of a d4 and of a d12 step: time, GB/s of the bytes that cost()
// counts and GFLOP/s of executed_flops; then plain and packed products side by side. Google Benchmark's own
// flags select and format (--benchmark_filter=packed, --benchmark_format=json); --threads is qtrain's.
//
// setup() fills an op's fields. It is called for each entry of QT_FOR_EACH_OP, so an op without one does not
// compile. Legend as in kernels/ops.h. On a card, where the shapes of d32 are added, calls are timed by the
// batch with one wait at its end, and `of_copy` tells the share of what a copy on the card moves.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "bench/harness.h"
#include "kernels/backend.h"
#include "kernels/scratch.h"
#include "quant/q8.h"
#include "src/options/option_table.h"
#include "src/plan/machine.h"

namespace qt {
namespace {

struct Shapes {
  const char* name;
  std::int64_t B, T, C, H, V;

  static constexpr std::int64_t D = 128;
  std::int64_t N() const { return B * T; }
  std::int64_t F() const { return 4 * C; }
  std::int64_t matrix_elems() const { return F() * C; }  // of the MLP, the largest packed matrix
  std::int64_t chunk_tokens() const { return std::min(N(), kLogitsChunkBytes / (4 * V)); }
};
constexpr Shapes kShapes[] = {{"d4", 4, 512, 256, 2, 4096}, {"d12", 1, 2048, 768, 6, 32768}};
constexpr Shapes kCardShapes[] = {{"d32", 8, 2048, 2048, 16, 65536}};
constexpr FormatId kPackedFormat = FormatId::nf4;

// Memory for the fields of one op, drawn from a normal distribution where the numbers matter.
class Bench {
 public:
  Bench(Backend& backend, const Shapes& shapes, DType dtype) : s(shapes), backend_(backend), dtype_(dtype) {}

  const Shapes& s;
  DType dtype() const { return dtype_; }

  TensorView empty(std::initializer_list<std::int64_t> shape, DType dtype) {
    return buffers_.empty(shape, dtype);
  }
  TensorView empty(std::initializer_list<std::int64_t> shape) { return empty(shape, dtype_); }

  TensorView normal(std::initializer_list<std::int64_t> shape, DType dtype) {
    return buffers_.normal(shape, dtype);
  }
  TensorView normal(std::initializer_list<std::int64_t> shape) { return normal(shape, dtype_); }

  // Token ids as text has them: few are frequent, most are rare.
  TensorView ids(std::int64_t count) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const float u = rng_unit(rng_u32(RngStream{.seed = 2}, i));
      tokens[i] = static_cast<std::int32_t>(std::pow(static_cast<float>(s.V - 1), u));
    }
    const TensorView view = empty({count}, DType::i32);
    backend_.upload(std::as_bytes(std::span(tokens)), view);
    return view;
  }

  template <class Op>
  void run(const Op& op) {
    backend_.run(op);
  }

  PackedView packed(std::int64_t N, std::int64_t K) { return buffers_.packed(kPackedFormat, N, K); }

  // What PrepareStep leaves for a step of small rates.
  TensorView step_params() {
    PrepareStep op;
    prepare(op);
    backend_.run(op);
    return op.params;
  }
  void prepare(PrepareStep& op) {
    op.grad_sumsq = empty({1}, DType::f64);
    op.totals = empty({2}, DType::f64);
    op.params = empty({kStepParamFloats}, DType::f32);
    op.stats = empty({kStepStatDoubles}, DType::f64);
    // Finite loss and norm: otherwise the optimizer ops that read the result do nothing.
    run(Fill{.x = op.grad_sumsq, .value = 1});
    run(Fill{.x = op.totals, .value = 1});
    for (AdamHyper& hyper : op.hyper) hyper = adam_hyper(1e-4, 0.8, 0.95, 1e-10, 0, 1);
    op.max_norm = 1;
    op.gradient_tokens = static_cast<double>(s.N());
  }

  template <class Op>
  void measure(benchmark::State& state, Op op) {
    if constexpr (requires { scratch_bytes(op, backend_.target()); }) {
      buffers_.add_scratch(op, backend_.target());
    }
    if (backend_.target().kind == DeviceKind::cuda) {
      while (state.KeepRunningBatch(kCallsPerWait)) {
        for (int i = 0; i < kCallsPerWait; ++i) backend_.run(op);
        backend_.synchronize();
      }
    } else {
      for (auto _ : state) backend_.run(op);
    }
    const Cost cost = op.cost();
    const auto rate = [&](double amount) {
      return benchmark::Counter(amount * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    };
    state.counters["GB/s"] = rate(cost.read_bytes + cost.written_bytes);
    state.counters["GFLOP/s"] = rate(cost.executed_flops);
    if (copy_bytes_s > 0) {
      state.counters["of_copy"] = benchmark::Counter((cost.read_bytes + cost.written_bytes) / copy_bytes_s,
                                                     benchmark::Counter::kIsIterationInvariantRate);
    }
  }

  static constexpr int kCallsPerWait = 16;  // a launch hides behind the call before
  static inline double copy_bytes_s = 0;    // read and written, of a copy on the card; 0: not measured

 private:
  Backend& backend_;
  DType dtype_;
  bench::Buffers buffers_{backend_};
};

void setup(Bench& b, Fill& op) { op.x = b.empty({b.s.matrix_elems()}); }

void setup(Bench& b, Cast& op) {
  op.x = b.normal({b.s.matrix_elems()}, DType::f32);
  op.y = b.empty({b.s.matrix_elems()}, DType::bf16);
}

void setup(Bench& b, Add& op) {
  op.a = b.normal({b.s.N(), b.s.C});
  op.b = b.normal({b.s.N(), b.s.C});
  op.y = op.b;
}

void setup(Bench& b, Multiply& op) {
  op.a = b.normal({b.s.N(), b.s.F()});
  op.b = b.normal({b.s.N(), b.s.F()});
  op.y = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, MultiplyBwd& op) {
  op.a = b.normal({b.s.N(), b.s.F()});
  op.b = b.normal({b.s.N(), b.s.F()});
  op.dy = b.normal({b.s.N(), b.s.F()});
  op.da = b.empty({b.s.N(), b.s.F()});
  op.db = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, InitNormal& op) {
  op.x = b.empty({b.s.matrix_elems()}, DType::f32);
  op.stddev = 1;
}

void setup(Bench& b, Relu2Fwd& op) {
  op.x = b.normal({b.s.N(), b.s.F()});
  op.y = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, Relu2Bwd& op) {
  op.x = b.normal({b.s.N(), b.s.F()});
  op.dy = b.normal({b.s.N(), b.s.F()});
  op.dx = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, GeluFwd& op) {
  op.x = b.normal({b.s.N(), b.s.F()});
  op.y = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, GeluBwd& op) {
  op.x = b.normal({b.s.N(), b.s.F()});
  op.dy = b.normal({b.s.N(), b.s.F()});
  op.dx = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, Dropout& op) {
  op.x = b.normal({b.s.N(), b.s.C});
  op.y = b.empty({b.s.N(), b.s.C});
  op.rate = 0.1f;
  op.rng = {.seed = 1, .purpose = RngPurpose::dropout};
}

void setup(Bench& b, EmbeddingFwd& op) {
  op.ids = b.ids(b.s.N());
  op.table = b.normal({b.s.V, b.s.C});
  op.y = b.empty({b.s.N(), b.s.C});
}

void setup(Bench& b, EmbeddingBwd& op) {
  op.ids = b.ids(b.s.N());
  op.dy = b.normal({b.s.N(), b.s.C});
  op.dtable = b.empty({b.s.V, b.s.C}, DType::f32);
}

void setup(Bench& b, RmsNormFwd& op) {
  op.x = b.normal({b.s.N(), b.s.C});
  op.y = b.empty({b.s.N(), b.s.C});
  op.rstd = b.empty({b.s.N()}, DType::f32);
}

void setup(Bench& b, RmsNormBwd& op) {
  op.y = b.normal({b.s.N(), b.s.C});
  op.rstd = b.normal({b.s.N()}, DType::f32);
  op.dy = b.normal({b.s.N(), b.s.C});
  op.dx = b.empty({b.s.N(), b.s.C});
}

void setup(Bench& b, PositionBwd& op) {
  op.dy = b.normal({b.s.N(), b.s.C});
  op.dpositions = b.empty({b.s.T, b.s.C}, DType::f32);
  op.T = b.s.T;
}

void setup(Bench& b, LayerNormFwd& op) {
  op.x = b.normal({b.s.N(), b.s.C});
  op.weight = b.normal({b.s.C}, DType::f32);
  op.bias = b.normal({b.s.C}, DType::f32);
  op.y = b.empty({b.s.N(), b.s.C});
  op.mean = b.empty({b.s.N()}, DType::f32);
  op.rstd = b.empty({b.s.N()}, DType::f32);
}

void setup(Bench& b, LayerNormBwd& op) {
  op.x = b.normal({b.s.N(), b.s.C});
  op.mean = b.normal({b.s.N()}, DType::f32);
  op.rstd = b.normal({b.s.N()}, DType::f32);
  op.weight = b.normal({b.s.C}, DType::f32);
  op.dy = b.normal({b.s.N(), b.s.C});
  op.dx = b.empty({b.s.N(), b.s.C});
  op.dweight = b.empty({b.s.C}, DType::f32);
  op.dbias = b.empty({b.s.C}, DType::f32);
}

void setup(Bench& b, RopeTable& op) {
  op.cos = b.empty({b.s.T, Shapes::D / 2});
  op.sin = b.empty({b.s.T, Shapes::D / 2});
}

void setup(Bench& b, RopeNormFwd& op) {
  op.x = b.normal({b.s.N(), b.s.H, Shapes::D});
  op.y = b.empty({b.s.N(), b.s.H, Shapes::D});
  op.rstd = b.empty({b.s.N(), b.s.H}, DType::f32);
  op.cos = b.normal({b.s.T, Shapes::D / 2});
  op.sin = b.normal({b.s.T, Shapes::D / 2});
  op.T = b.s.T;
}

void setup(Bench& b, RopeNormBwd& op) {
  op.y = b.normal({b.s.N(), b.s.H, Shapes::D});
  op.rstd = b.normal({b.s.N(), b.s.H}, DType::f32);
  op.dy = b.normal({b.s.N(), b.s.H, Shapes::D});
  op.dx = b.empty({b.s.N(), b.s.H, Shapes::D});
  op.cos = b.normal({b.s.T, Shapes::D / 2});
  op.sin = b.normal({b.s.T, Shapes::D / 2});
  op.T = b.s.T;
}

void setup(Bench& b, AttentionFwd& op) {
  for (TensorView* view : {&op.q, &op.k, &op.v}) *view = b.normal({b.s.B, b.s.T, b.s.H, Shapes::D});
  op.y = b.empty({b.s.B, b.s.T, b.s.H, Shapes::D});
  op.lse = b.empty({b.s.B, b.s.H, b.s.T}, DType::f32);
  op.scale = 0.088f;  // 1 / sqrt(128)
}

void setup(Bench& b, AttentionBwd& op) {
  for (TensorView* view : {&op.q, &op.k, &op.v, &op.y, &op.dy})
    *view = b.normal({b.s.B, b.s.T, b.s.H, Shapes::D});
  op.lse = b.empty({b.s.B, b.s.H, b.s.T}, DType::f32);
  // Large enough that no probability overflows.
  b.run(Fill{.x = op.lse, .value = 16});
  for (TensorView* view : {&op.dq, &op.dk, &op.dv}) *view = b.empty({b.s.B, b.s.T, b.s.H, Shapes::D});
  op.scale = 0.088f;
}

// The gradient of a weight; the products with a weight are below.
void setup(Bench& b, Matmul& op) {
  op.a = b.normal({b.s.N(), b.s.F()});
  op.b = b.normal({b.s.N(), b.s.C});
  op.c = b.empty({b.s.F(), b.s.C}, DType::f32);
  op.layout = GemmLayout::tn;
  op.accumulate = true;
}

void setup(Bench& b, PackedMatmul& op) {
  op.x = b.normal({b.s.N(), b.s.C});
  op.w = b.packed(b.s.F(), b.s.C);
  op.y = b.empty({b.s.N(), b.s.F()});
}

void setup(Bench& b, ColumnSum& op) {
  op.x = b.normal({b.s.N(), b.s.F()});
  op.out = b.empty({b.s.F()}, DType::f32);
}

void setup(Bench& b, SoftcapCrossEntropy& op) {
  const std::int64_t M = b.s.chunk_tokens();
  op.logits = b.normal({M, b.s.V}, DType::f32);
  op.targets = b.ids(M);
  op.nll = b.empty({M}, DType::f32);
  op.dlogits = dlogits_view(op.logits, b.dtype());
}

void setup(Bench& b, Softcap& op) { op.x = b.normal({b.s.chunk_tokens() * b.s.V}, DType::f32); }

void setup(Bench& b, SumLoss& op) {
  op.nll = b.normal({b.s.chunk_tokens()}, DType::f32);
  op.targets = b.ids(b.s.chunk_tokens());
  op.totals = b.empty({2}, DType::f64);
}

void setup(Bench& b, SumSquares& op) {
  op.x = b.normal({4 * b.s.matrix_elems()});
  op.out = b.empty({1}, DType::f64);
}

void setup(Bench& b, PrepareStep& op) { b.prepare(op); }

void setup(Bench& b, AdamW& op) {
  const std::int64_t n = b.s.matrix_elems();
  op.master = b.normal({n}, DType::f32);
  op.grad = b.normal({n});
  op.m = b.empty({n}, DType::f32);
  op.v = b.empty({n}, DType::f32);
  op.params = b.step_params();
}

void setup(Bench& b, AdamW8& op) {
  const std::int64_t n = b.s.matrix_elems();
  op.master = b.normal({n}, DType::f32);
  op.grad = b.normal({n});
  op.m_codes = b.empty({n}, DType::u8);
  op.v_codes = b.empty({n}, DType::u8);
  op.m_absmax = b.empty({q8_scale_count(n)}, DType::f32);
  op.v_absmax = b.empty({q8_scale_count(n)}, DType::f32);
  op.params = b.step_params();
}

void setup(Bench& b, Quantize& op) {
  op.w = b.packed(b.s.F(), b.s.C);
  op.src = b.normal({b.s.matrix_elems()}, DType::f32);
  op.bad_index = b.empty({1}, DType::f64);
}

void setup(Bench& b, Dequantize& op) {
  op.w = b.packed(b.s.F(), b.s.C);
  op.dst = b.empty({b.s.matrix_elems()});
}

// Ops whose fields have fixed dtypes: one run says it all.
template <class Op, class... Others>
constexpr bool kIsOneOf = (std::is_same_v<Op, Others> || ...);
template <class Op>
constexpr bool kOneDType = kIsOneOf<Op, Cast, InitNormal, Softcap, SumLoss, PrepareStep, Quantize>;

// Ops that take no f16.
template <class Op>
constexpr bool kNoF16 = kIsOneOf<Op, PackedMatmul, SumSquares, AdamW, AdamW8, Dequantize>;

void add(const std::string& name, std::function<void(benchmark::State&)> body) {
  benchmark::RegisterBenchmark(name.c_str(), std::move(body))->UseRealTime()->Unit(benchmark::kMicrosecond);
}

template <class Op>
void add_op(Backend& backend, const Shapes& shapes) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (kOneDType<Op> && dtype != DType::f32) continue;
    if (kNoF16<Op> && dtype == DType::f16) continue;
    add(fmt::format("{}/{}{}{}", Op::kName, shapes.name, kOneDType<Op> ? "" : "/",
                    kOneDType<Op> ? "" : dtype_name(dtype)),
        [&backend, &shapes, dtype](benchmark::State& state) {
          Bench b(backend, shapes, dtype);
          Op op;
          setup(b, op);
          b.measure(state, op);
        });
  }
}

double measured_copy_bytes_s(Backend& backend) {
  constexpr std::int64_t kBytes = 256 * kMiB;
  bench::Buffers buffers(backend);
  const TensorView from = buffers.empty({kBytes}, DType::u8), to = buffers.empty({kBytes}, DType::u8);
  return 2.0 * static_cast<double>(kBytes) / bench::median_seconds(backend, [&] { backend.copy(from, to); });
}

// The first product of an MLP, forward (nt) and for its input's gradient (nn), with the weight plain and
// packed.
void add_products(Backend& backend, const Shapes& shapes) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn}) {
      for (const std::int64_t M : {512, 2048, 8192}) {
        for (const bool packed : {false, true}) {
          const bool nt = layout == GemmLayout::nt;
          const std::string name = fmt::format("product/{}/{}/{}/M={}/{}", shapes.name, dtype_name(dtype),
                                               nt ? "nt" : "nn", M, packed ? "packed" : "plain");
          add(name, [=, &backend, &shapes](benchmark::State& state) {
            Bench b(backend, shapes, dtype);
            const std::int64_t N = shapes.F(), K = shapes.C;
            const TensorView x = b.normal({M, nt ? K : N}), y = b.empty({M, nt ? N : K});
            if (packed) {
              b.measure(state, PackedMatmul{.x = x, .w = b.packed(N, K), .y = y, .layout = layout});
            } else {
              b.measure(state, Matmul{.a = x, .b = b.normal({N, K}), .c = y, .layout = layout});
            }
          });
        }
      }
    }
  }
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);  // takes its own flags out
  add_built_backends();
  const Options options = load_options(std::vector<std::string>(argv + 1, argv + argc)).options;
  const Target target = target_from_options(options);
  const auto backend = bench::open_backend(target);
  benchmark::AddCustomContext("qtrain_device", bench::device_name(target));
  const auto add_shapes = [&](const Shapes& shapes) {
#define QT_ADD_OP(Op) add_op<Op>(*backend, shapes);
    QT_FOR_EACH_OP(QT_ADD_OP)
#undef QT_ADD_OP
    add_products(*backend, shapes);
  };
  for (const Shapes& shapes : kShapes) add_shapes(shapes);
  if (target.kind == DeviceKind::cuda) {
    Bench::copy_bytes_s = measured_copy_bytes_s(*backend);
    benchmark::AddCustomContext(
        "copy_on_device", fmt::format("{:.1f} GB/s read and written", Bench::copy_bytes_s / bench::kGiga));
    for (const Shapes& shapes : kCardShapes) add_shapes(shapes);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace qt

int main(int argc, char** argv) {
  try {
    return qt::run(argc, argv);
  } catch (const qt::Error& e) {
    std::cerr << "bench_ops: " << e.what() << "\n        " << e.hint() << "\n";
    return static_cast<int>(e.code());
  }
}

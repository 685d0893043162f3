// The ops: one struct each, the whole contract between model or optimizer and a backend.
//
// Legend: N tokens of the micro-batch (B rows of T), C width, H query heads, G key/value heads, D head width,
// F MLP width, V vocabulary, M tokens of a loss chunk. "f" stands for f32 | bf16 | f16, the same in all
// fields marked so. f16 results beyond 65504 become infinite, and gradients that are accumulated over tokens
// (of weights, tables, biases) are f32 then. check() throws ShapeError or DTypeError naming the op and the
// field; Backend::run calls it once. cost() counts what the op itself does. Unless said otherwise outputs may
// not alias inputs, views are dense, and the same inputs give the same bits on every run and with every
// number of threads.
#pragma once

#include <array>
#include <cstdint>

#include "quant/adam_math.h"
#include "quant/packed.h"
#include "quant/param.h"
#include "src/core/rng.h"
#include "src/core/tensor.h"

namespace qt {

// model_flops: nanochat's convention (6 per weight and token over forward and backward, full-square
// attention, no recompute), what published MFU is quoted in. executed_flops: what the kernels do (causal
// tiles, the seven GEMMs of the two-kernel attention backward). Both count a multiply-add as two.
struct Cost {
  double model_flops = 0;
  double executed_flops = 0;
  double read_bytes = 0;
  double written_bytes = 0;
};

// ---- elementwise -------------------------------------------------------------------------------------

struct Fill {
  static constexpr const char* kName = "fill";
  TensorView x;  // out any shape, any dtype but i64; dense
  double value = 0;
  void check() const;
  Cost cost() const;
};

struct Cast {
  static constexpr const char* kName = "cast";
  TensorView x;  // in  [n] f32 | bf16 | f16
  TensorView y;  // out [n] f32 | bf16 | f16; rounds to nearest even, beyond 65504 to infinity in f16
  void check() const;
  Cost cost() const;
};

// y = a + b, one rounding.
struct Add {
  static constexpr const char* kName = "add";
  TensorView a;  // in  any shape, f
  TensorView b;  // in  same
  TensorView y;  // out same; may be a or b
  void check() const;
  Cost cost() const;
};

// y = a * b, one rounding.
struct Multiply {
  static constexpr const char* kName = "multiply";
  TensorView a;  // in  any shape, f
  TensorView b;  // in  same
  TensorView y;  // out same; may be a or b
  void check() const;
  Cost cost() const;
};

// da = dy * b, db = dy * a, one rounding each.
struct MultiplyBwd {
  static constexpr const char* kName = "multiply_bwd";
  TensorView a;   // in  any shape, f: the inputs of the forward op
  TensorView b;   // in  same
  TensorView dy;  // in  same
  TensorView da;  // out same; may be dy
  TensorView db;  // out same; may be b
  void check() const;
  Cost cost() const;
};

// x[i] = constant + stddev * normal(rng, i). Draw i depends on (rng, i) alone. Backends agree to one f32 ulp
// (the tail of the inverse distribution needs a logarithm), of which bf16 keeps what rounding to nearest
// does.
struct InitNormal {
  static constexpr const char* kName = "init_normal";
  TensorView x;  // out [n] f32 | bf16
  float stddev = 0;
  float constant = 0;
  RngStream rng;
  std::int64_t first_element =
      0;  // x[0] is element `first_element` of the tensor: slabs draw what the whole would
  void check() const;
  Cost cost() const;
};

// y = max(x, 0)^2, one rounding.
struct Relu2Fwd {
  static constexpr const char* kName = "relu2_fwd";
  TensorView x;  // in  [N, F] f
  TensorView y;  // out [N, F] f
  void check() const;
  Cost cost() const;
};

// dx = 2 max(x, 0) dy.
struct Relu2Bwd {
  static constexpr const char* kName = "relu2_bwd";
  TensorView x;   // in  [N, F] f, the input of the forward op
  TensorView dy;  // in  [N, F] f
  TensorView dx;  // out [N, F] f; may be dy
  void check() const;
  Cost cost() const;
};

// y = x Phi(x), Phi the normal distribution (1 + erf(x / sqrt(2))) / 2: the exact GELU of GPT-2's nanoGPT
// form, not the tanh approximation. Phi within 12 f32 roundoffs plus x^2 / 2 more where x < 0 (the argument
// of its exponential), relative; 0 below x = -13.1, where it is smaller than 1e-38.
struct GeluFwd {
  static constexpr const char* kName = "gelu_fwd";
  TensorView x;  // in  [N, F] f
  TensorView y;  // out [N, F] f
  void check() const;
  Cost cost() const;
};

// dx = dy (Phi(x) + x phi(x)), phi the normal density.
struct GeluBwd {
  static constexpr const char* kName = "gelu_bwd";
  TensorView x;   // in  [N, F] f, the input of the forward op
  TensorView dy;  // in  [N, F] f
  TensorView dx;  // out [N, F] f; may be dy
  void check() const;
  Cost cost() const;
};

// y[i] = keeps(i) ? x[i] * (1 / (1 - rate)) : 0, the factor and the product rounded to f32. Element i of the
// view is element first_element + i of the mask: keeps(e) compares draw e of rng with a threshold
// (kernels/dropout.h), in integers, so that the mask is the same on every backend, whatever is cut how, and
// the same op on dy is the backward pass. rate 0 copies.
struct Dropout {
  static constexpr const char* kName = "dropout";
  TensorView x;    // in  any shape, f
  TensorView y;    // out same; may be x
  float rate = 0;  // in [0, 1): the share that is dropped
  RngStream rng;   // of purpose dropout
  std::int64_t first_element = 0;
  void check() const;
  Cost cost() const;
};

// ---- embedding ----------------------------------------------------------------------------------------

// y[n] = table[ids[n]], or with positions y[n] = table[ids[n]] + positions[first_position + n % T]: an f32
// sum, rounded once.
struct EmbeddingFwd {
  static constexpr const char* kName = "embedding_fwd";
  TensorView ids;        // in  [N] i32, every id in [0, V)
  TensorView table;      // in  [V, C] f
  TensorView y;          // out [N, C] f
  TensorView positions;  // in  [P, C] f, P >= first_position + T; or undefined
  std::int64_t T = 0;    // tokens of a row, with positions only; N is a multiple
  std::int64_t first_position = 0;
  void check() const;
  Cost cost() const;
};

// dpositions[t] += the sum of dy[b T + t] over the rows b of the batch, in f32 in ascending order, added
// once.
struct PositionBwd {
  static constexpr const char* kName = "position_bwd";
  TensorView dy;          // in     [N, C] f
  TensorView dpositions;  // in/out [P, C] f32 | bf16 (as EmbeddingBwd), P >= T; later rows stay
  std::int64_t T = 0;     // tokens of a row; N is a multiple
  void check() const;
  Cost cost() const;
};

// dtable[ids[n]] += dy[n]. Rows of the same id are summed in f32 in token order, then added once.
struct EmbeddingBwd {
  static constexpr const char* kName = "embedding_bwd";
  TensorView ids;      // in     [N] i32
  TensorView dy;       // in     [N, C] f
  TensorView dtable;   // in/out [V, C] f32 | bf16 (the gradient's dtype; f32 with f16)
  TensorView scratch;  // u8 [scratch_bytes(op)]
  void check() const;
  Cost cost() const;
};

// ---- norm and rope ------------------------------------------------------------------------------------

// y = x * rstd, rstd = 1 / sqrt(mean(x^2) + eps) per row: RMSNorm without a weight. Mean in f32.
struct RmsNormFwd {
  static constexpr const char* kName = "rmsnorm_fwd";
  TensorView x;     // in  [N, C] f
  TensorView y;     // out [N, C] f; may be x
  TensorView rstd;  // out [N] f32
  float eps = 0;
  void check() const;
  Cost cost() const;
};

// dx (+)= rstd * (dy - y * mean(dy * y)). Takes the output y, so the input need not outlive the forward pass.
struct RmsNormBwd {
  static constexpr const char* kName = "rmsnorm_bwd";
  TensorView y;     // in  [N, C] f
  TensorView rstd;  // in  [N] f32
  TensorView dy;    // in  [N, C] f
  TensorView dx;    // out, or in/out when accumulate: [N, C] f; may be dy when not accumulating
  bool accumulate = false;
  void check() const;
  Cost cost() const;
};

// y = (x - mean) * rstd * weight + bias per row, rstd = 1 / sqrt(mean((x - mean)^2) + eps). Two passes over
// the row in f32, first the mean, then the squares of what is left: no cancellation between large sums.
// Without a mean, which then counts as 0, it is RMSNorm with a weight.
struct LayerNormFwd {
  static constexpr const char* kName = "layernorm_fwd";
  TensorView x;       // in  [N, C] f
  TensorView weight;  // in  [C] f32
  TensorView bias;    // in  [C] f32, or undefined: none
  TensorView y;       // out [N, C] f; may be x
  TensorView mean;    // out [N] f32, or undefined: RMSNorm
  TensorView rstd;    // out [N] f32
  float eps = 0;
  void check() const;
  Cost cost() const;
};

// With h = (x - mean) * rstd and g = dy * weight:
//   dx (+)= rstd * (g - mean(g) - h * mean(g h)),  dweight += sum of dy h,  dbias += sum of dy
// and without a mean h = x * rstd, and no mean(g).
// The sums over rows run over blocks of rows that depend on N alone (kernels/row_blocks.h), in ascending
// order within a block, and the blocks in ascending order.
struct LayerNormBwd {
  static constexpr const char* kName = "layernorm_bwd";
  TensorView x;             // in  [N, C] f, the input of the forward op
  TensorView mean;          // in  [N] f32, or undefined as in the forward op
  TensorView rstd;          // in  [N] f32
  TensorView weight;        // in  [C] f32
  TensorView dy;            // in  [N, C] f
  TensorView dx;            // out, or in/out when accumulate: [N, C] f; may be dy when not accumulating
  TensorView dweight;       // in/out [C] f32
  TensorView dbias;         // in/out [C] f32, or undefined: none
  TensorView scratch;       // u8 [scratch_bytes(op)]
  bool accumulate = false;  // of dx; the gradients of weight and bias always are
  void check() const;
  Cost cost() const;
};

// cos and sin of position * base^(-2i/D): angle and functions in f32 (angles as f32(t) * f32(inv_freq),
// inv_freq in double rounded to f32), then rounded to the dtype.
struct RopeTable {
  static constexpr const char* kName = "rope_table";
  TensorView cos;  // out [T, D/2] f
  TensorView sin;  // out [T, D/2] f
  float base = 10000.0f;
  void check() const;
  Cost cost() const;
};

// Rotation by -theta in half-split layout (nanochat's convention), then RMSNorm over the head (QK-norm):
//   r[i] = x[i] cos + x[i + D/2] sin,  r[i + D/2] = -x[i] sin + x[i + D/2] cos,  y = r * rstd(r)
// Computed in f32, rounded once. Token n stands at position first_position + n % T. Without rstd y = r: no norm.
struct RopeNormFwd {
  static constexpr const char* kName = "rope_norm_fwd";
  TensorView x;     // in  [N, H, D] f
  TensorView y;     // out [N, H, D] f; may be x
  TensorView rstd;  // out [N, H] f32, or undefined: no norm
  TensorView cos;   // in  [P, D/2] f, P > every position
  TensorView sin;   // in  [P, D/2] f
  std::int64_t T = 0;
  std::int64_t first_position = 0;
  float eps = 0;
  void check() const;
  Cost cost() const;
};

// The gradient of RopeNormFwd from its output: dr = rstd (dy - y mean(dy y)), then the rotation by +theta; without
// rstd dr = dy.
struct RopeNormBwd {
  static constexpr const char* kName = "rope_norm_bwd";
  TensorView y;     // in  [N, H, D] f; not read without rstd
  TensorView rstd;  // in  [N, H] f32, or undefined as in the forward op
  TensorView dy;    // in  [N, H, D] f
  TensorView dx;    // out [N, H, D] f; may be dy
  TensorView cos;   // in  [P, D/2] f
  TensorView sin;   // in  [P, D/2] f
  std::int64_t T = 0;
  void check() const;
  Cost cost() const;
};

// ---- attention ----------------------------------------------------------------------------------------

// Causal softmax(scale * q k^T) v with grouped key/value heads: query head h reads key head h / (H / G).
// Tq <= Tk: query i stands at position i + Tk - Tq and sees keys 0 .. that position (decoding reads a cache).
// Streaming softmax, f32 accumulation; probabilities are rounded to the dtype before they meet v.
//
// Dropout as in PyTorch: after the softmax, a probability counts 1 / (1 - dropout) times or not at all; lse
// is that of all keys. The mask depends on rng and the position (first_row + b, head, query, key) alone
// (kernels/dropout.h): the backward pass draws it again.
struct AttentionFwd {
  static constexpr const char* kName = "attention_fwd";
  TensorView q;        // in  [B, Tq, H, D] f
  TensorView k;        // in  [B, Tk, G, D] f
  TensorView v;        // in  [B, Tk, G, D] f
  TensorView y;        // out [B, Tq, H, D] f
  TensorView lse;      // out [B, H, Tq] f32: log of the sum of exp(scale * score), saved for backward
  TensorView scratch;  // u8 [scratch_bytes(op)]
  float scale = 1;
  float dropout = 0;           // in [0, 1); above 0 only with Tq == Tk
  RngStream rng;               // of purpose dropout
  std::int64_t first_row = 0;  // of the batch, for the mask
  void check() const;
  Cost cost() const;
};

// Two passes, no atomics: dq by query tiles; dk and dv by key tiles, query heads of a group in ascending
// order.
struct AttentionBwd {
  static constexpr const char* kName = "attention_bwd";
  TensorView q;        // in  [B, T, H, D] f
  TensorView k;        // in  [B, T, G, D] f
  TensorView v;        // in  [B, T, G, D] f
  TensorView y;        // in  [B, T, H, D] f
  TensorView lse;      // in  [B, H, T] f32
  TensorView dy;       // in  [B, T, H, D] f
  TensorView dq;       // out [B, T, H, D] f
  TensorView dk;       // out [B, T, G, D] f
  TensorView dv;       // out [B, T, G, D] f
  TensorView scratch;  // u8 [scratch_bytes(op)]; holds delta = rowsum(dy * y) and more
  float scale = 1;
  float dropout = 0;  // this and the next two as in the forward op
  RngStream rng;
  std::int64_t first_row = 0;
  void check() const;
  Cost cost() const;
};

// ---- matrix products ----------------------------------------------------------------------------------

// nt: c[M,N] = a[M,K] b[N,K]^T (forward, b a weight)      nn: c[M,K] = a[M,N] b[N,K] (dx = dy W)
// tn: c[N,K] = a[M,N]^T b[M,K] (dW = dy^T x)
enum class GemmLayout : std::uint8_t { nt, nn, tn };

// f32 accumulation, one rounding into c. With accumulate the f32 sum is added to the widened c, then rounded;
// with bias (nt only, not with accumulate) bias[n] is added to the f32 sum of column n, then rounded.
struct Matmul {
  static constexpr const char* kName = "matmul";
  TensorView a;        // in  f; rows may be pitched
  TensorView b;        // in  f; rows may be pitched
  TensorView c;        // out or in/out, f or f32 (f32 with f16 and tn); rows may be pitched
  TensorView bias;     // in  [N] f32 at a multiple of 16 bytes, or undefined: none
  TensorView scratch;  // u8 [scratch_bytes(op)], undefined when that is 0
  GemmLayout layout = GemmLayout::nt;
  bool accumulate = false;
  void check() const;
  Cost cost() const;
};

// The same products with the weight packed: nt and nn only, both from the same bytes. Every backend and route
// sees the canonical weight round_to_bf16(codebook * scale), widened when x is f32.
struct PackedMatmul {
  static constexpr const char* kName = "packed_matmul";
  TensorView x;        // in  f32 | bf16: [M, K] for nt, [M, N] for nn
  PackedView w;        // in  [N, K] packed
  TensorView y;        // out as x: [M, N] for nt, [M, K] for nn
  TensorView bias;     // in  [N] f32, nt only, as in Matmul; or undefined: none
  TensorView scratch;  // u8 [scratch_bytes(op)], undefined when that is 0
  GemmLayout layout = GemmLayout::nt;
  void check() const;
  Cost cost() const;
};

// out[n] += the sum of column n of x: the gradient of a bias. f32, by the blocks of rows of LayerNormBwd.
struct ColumnSum {
  static constexpr const char* kName = "column_sum";
  TensorView x;        // in     [M, N] f; rows may be pitched
  TensorView out;      // in/out [N] f32
  TensorView scratch;  // u8 [scratch_bytes(op)]
  void check() const;
  Cost cost() const;
};

// ---- loss ---------------------------------------------------------------------------------------------

// z = softcap * tanh(logits / softcap); nll = logsumexp(z) - z[target]; the gradient replaces the logits in
// place: dlogits = grad_scale * (softmax(z) - onehot) * (1 - (z / softcap)^2), zero rows where target is -1.
// The cap bounds z, so no pass for the row maximum is needed. softcap 0: no cap (then the maximum is
// subtracted).
struct SoftcapCrossEntropy {
  static constexpr const char* kName = "softcap_cross_entropy";
  TensorView logits;   // in (destroyed when dlogits is defined) [M, V] f32, dense
  TensorView targets;  // in  [M] i32 in [0, V) or -1 (ignored)
  TensorView nll;      // out [M] f32, 0 where ignored
  TensorView dlogits;  // out [M, V] f over the same bytes: row r starts where row r of logits starts (so a
                       // 16-bit view is pitched by 2 V); undefined: loss only, logits stay as they are
  float softcap = 15;
  float grad_scale = 1;  // with loss scaling: the scale over the tokens of the window
  void check() const;
  Cost cost() const;
};

// The view to pass as dlogits for f32 logits [M, V] and compute dtype f.
TensorView dlogits_view(const TensorView& logits, DType dtype);

// x = softcap * tanh(x / softcap) in place: logits for sampling.
struct Softcap {
  static constexpr const char* kName = "softcap";
  TensorView x;  // in/out [n] f32
  float softcap = 15;
  void check() const;
  Cost cost() const;
};

// totals[0] += sum(nll), totals[1] += number of targets >= 0; in double, in index order by a fixed tree.
struct SumLoss {
  static constexpr const char* kName = "sum_loss";
  TensorView nll;      // in     [M] f32
  TensorView targets;  // in     [M] i32
  TensorView totals;   // in/out [2] f64
  void check() const;
  Cost cost() const;
};

// ---- optimizer ----------------------------------------------------------------------------------------

// out[0] = sum of squares, in double by a fixed tree over blocks of 4096 elements.
struct SumSquares {
  static constexpr const char* kName = "sum_squares";
  TensorView x;        // in  [n] f32 | bf16
  TensorView out;      // out [1] f64
  TensorView scratch;  // u8 [scratch_bytes(op)]
  void check() const;
  Cost cost() const;
};

// What one optimizer step needs, in device memory: computed and consumed there.
//   [0] factor on every gradient (normalisation by tokens times clipping)  [1] 1 when the step must be
//   skipped  [2] norm  [3] 0  [kStepScalarFloats + kHyperFloats g ...] AdamHyper of parameter group g
inline constexpr int kStepScalarFloats = 4;
inline constexpr int kHyperFloats = 8;  // of one parameter group; the last is not used
inline constexpr int kStepParamFloats = kStepScalarFloats + kHyperFloats * kParamGroups;
// What the host reads back, one call per step: loss (nats per token), gradient norm before clipping, 1 when
// norm or loss is not finite, number of targets.
inline constexpr int kStepStatDoubles = 4;

struct PrepareStep {
  static constexpr const char* kName = "prepare_step";
  TensorView grad_sumsq;  // in  [r] f64, r >= 1: of the regions of gradients, added in order
  TensorView totals;      // in  [2] f64, of SumLoss over the accumulation window
  TensorView params;      // out [kStepParamFloats] f32
  TensorView stats;       // out [kStepStatDoubles] f64
  std::array<AdamHyper, kParamGroups> hyper{};
  double max_norm =
      0;  // 0: no clipping. Factor min(1, max_norm / (norm + 1e-6)), as PyTorch's clip_grad_norm_
  // The number the gradients were divided by, 1 / grad_scale of the loss: the tokens of the window, or with
  // loss scaling tokens / scale. Norm, clipping and factor then are those of the unscaled gradient, and an
  // f16 overflow anywhere in the window shows as a norm that is not finite: stats[2] and params[1] are 1, the
  // step is skipped, and the host lowers the scale.
  double gradient_tokens = 1;
  void check() const;
  Cost cost() const;
};

// AdamW with f32 moments, arithmetic of quant/adam_math.h. Nothing is written when params[1] is set. A bf16
// master is widened, updated in f32, and rounded stochastically (to_bf16_stochastic): element i by draw
// first_element + i of rng, so that neither slabs nor threads matter.
struct AdamW {
  static constexpr const char* kName = "adamw";
  TensorView master;  // in/out [n] f32 | bf16
  TensorView grad;    // in     [n] f32 | bf16
  TensorView m;       // in/out [n] f32
  TensorView v;       // in/out [n] f32
  TensorView params;  // in     [kStepParamFloats] f32
  ParamGroup group = ParamGroup::matrix;
  RngStream rng;  // with a bf16 master: of purpose stochastic_rounding
  std::int64_t first_element = 0;
  void check() const;
  Cost cost() const;
};

// AdamW with 8-bit block moments (block 256, quant/q8.h). n may end in a partial block. A bf16 master as
// above.
struct AdamW8 {
  static constexpr const char* kName = "adamw8";
  TensorView master;    // in/out [n] f32 | bf16
  TensorView grad;      // in     [n] f32 | bf16
  TensorView m_codes;   // in/out [n] u8
  TensorView v_codes;   // in/out [n] u8
  TensorView m_absmax;  // in/out [ceil(n / 256)] f32
  TensorView v_absmax;  // in/out [ceil(n / 256)] f32
  TensorView params;    // in     [kStepParamFloats] f32
  ParamGroup group = ParamGroup::matrix;
  RngStream rng;  // with a bf16 master: of purpose stochastic_rounding
  std::int64_t first_element = 0;
  void check() const;
  Cost cost() const;
};

// ---- quantization -------------------------------------------------------------------------------------

// Packs elements [first, first + n) of a matrix. first must be a multiple of the block size, and n too unless
// the range ends the matrix. A non-finite input leaves 1 + its flat index in bad_index (the smallest one
// wins; 0: none so far); the host turns it into an error that names the tensor. A range of a matrix in tiles
// is the same elements, in the order of the matrix, at other places.
struct Quantize {
  static constexpr const char* kName = "quantize";
  TensorView src;  // in  [n] f32 | bf16, widened
  PackedView w;    // out elements [first, first + n)
  std::int64_t first = 0;
  TensorView bad_index;  // in/out [1] f64
  void check() const;
  Cost cost() const;
};

// Unpacks elements [first, first + n) of a matrix; of one in tiles, first and n are multiples of 64.
struct Dequantize {
  static constexpr const char* kName = "dequantize";
  PackedView w;  // in
  std::int64_t first = 0;
  TensorView dst;  // out [n] f32 | bf16: the canonical weight
  void check() const;
  Cost cost() const;
};

}  // namespace qt

// Every op once: the backends' overrides, the null backend's counters and the tests' coverage check take
// their list from here.
// clang-format off
#define QT_FOR_EACH_OP(X)                                                                                  \
  X(Fill) X(Cast) X(Add) X(Multiply) X(MultiplyBwd) X(InitNormal) X(Relu2Fwd) X(Relu2Bwd) X(GeluFwd)       \
  X(GeluBwd) X(Dropout) X(EmbeddingFwd) X(EmbeddingBwd) X(PositionBwd) X(RmsNormFwd) X(RmsNormBwd)         \
  X(LayerNormFwd) X(LayerNormBwd) X(RopeTable) X(RopeNormFwd) X(RopeNormBwd) X(AttentionFwd)               \
  X(AttentionBwd) X(Matmul) X(PackedMatmul) X(ColumnSum) X(SoftcapCrossEntropy) X(Softcap) X(SumLoss)      \
  X(SumSquares) X(PrepareStep) X(AdamW) X(AdamW8) X(Quantize) X(Dequantize)
// clang-format on

// check() of every op: ranks, shapes, dtypes, density, where the memory lies, and which views may share
// bytes. Sizes of scratch depend on the target and are checked by the backend that consumes it.
#include <cstdint>
#include <initializer_list>

#include "kernels/op_checker.h"
#include "kernels/ops.h"
#include "quant/q8.h"
#include "quant/tiles.h"

namespace qt {

namespace {

// What ops compute on; what gradients are accumulated in.
constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::bf16, DType::f16};
constexpr std::initializer_list<DType> kGradients = {DType::f32, DType::bf16};
constexpr std::initializer_list<DType> kF32 = {DType::f32};

// Scaled f16 gradients are summed in f32 alone: bf16 would lose what the scale was to save.
constexpr std::initializer_list<DType> gradients_of(DType compute) {
  return compute == DType::f16 ? kF32 : kGradients;
}

// y = f(a, b), element by element; y may be a or b.
void check_pointwise(const Checker& c, const TensorView& a, const TensorView& b, const TensorView& y) {
  c.any_shape({"a", a}, kFloats);
  c.any_shape({"b", b}, {a.dtype});
  c.any_shape({"y", y}, {a.dtype});
  c.same_shape({"b", b}, {"a", a});
  c.same_shape({"y", y}, {"a", a});
  c.separate({{"y", y}}, {{"a", a}, {"b", b}}, {"a", "b"});
}

}  // namespace

// ---- elementwise -------------------------------------------------------------------------------------

void Fill::check() const {
  Checker(kName).any_shape({"x", x},
                           {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u8, DType::i32});
}

void Cast::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1}, kFloats);
  c.dense({"y", y}, {x.dim(0)}, kFloats);
  c.separate({{"y", y}}, {{"x", x}});
}

void Add::check() const { check_pointwise(Checker(kName), a, b, y); }

void Multiply::check() const { check_pointwise(Checker(kName), a, b, y); }

void MultiplyBwd::check() const {
  const Checker c(kName);
  c.any_shape({"a", a}, kFloats);
  for (const Field& f : {Field{"b", b}, Field{"dy", dy}, Field{"da", da}, Field{"db", db}}) {
    c.any_shape(f, {a.dtype});
    c.same_shape(f, {"a", a});
  }
  c.separate({{"da", da}, {"db", db}}, {{"a", a}});
  c.separate({{"da", da}}, {{"b", b}, {"dy", dy}}, {"dy"});
  c.separate({{"db", db}}, {{"b", b}, {"dy", dy}}, {"b"});
}

void InitNormal::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1}, kGradients);
  c.at_least(first_element, 0, "first_element");
}

void Relu2Fwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  c.dense({"y", y}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.separate({{"y", y}}, {{"x", x}});
}

void Relu2Bwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  c.dense({"dy", dy}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.dense({"dx", dx}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.separate({{"dx", dx}}, {{"dy", dy}, {"x", x}}, {"dy"});
}

void GeluFwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  c.dense({"y", y}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.separate({{"y", y}}, {{"x", x}});
}

void GeluBwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  c.dense({"dy", dy}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.dense({"dx", dx}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.separate({{"dx", dx}}, {{"dy", dy}, {"x", x}}, {"dy"});
}

namespace {

void check_dropout(const Checker& c, float rate, const RngStream& rng, const char* field) {
  if (!(rate >= 0 && rate < 1))
    c.require(false, fmt::format("{} must be at least 0 and below 1, not {}", field, rate));
  c.require(rate == 0 || rng.purpose == RngPurpose::dropout, "rng must be of purpose dropout");
}

}  // namespace

void Dropout::check() const {
  const Checker c(kName);
  c.any_shape({"x", x}, kFloats);
  c.any_shape({"y", y}, {x.dtype});
  c.same_shape({"y", y}, {"x", x});
  c.separate({{"y", y}}, {{"x", x}}, {"x"});
  c.at_least(first_element, 0, "first_element");
  check_dropout(c, rate, rng, "rate");
}

// ---- embedding ----------------------------------------------------------------------------------------

void EmbeddingFwd::check() const {
  const Checker c(kName);
  c.dense({"ids", ids}, {-1}, {DType::i32});
  c.dense({"table", table}, {-1, -1}, kFloats);
  c.dense({"y", y}, {ids.dim(0), table.dim(1)}, {table.dtype});
  c.separate({{"y", y}}, {{"ids", ids}, {"table", table}, {"positions", positions}});
  if (!positions.defined()) return;
  c.dense({"positions", positions}, {-1, table.dim(1)}, {table.dtype});
  c.at_least(T, 1, "T");
  c.require(ids.dim(0) % T == 0, "the tokens must be whole rows of T");
  c.at_least(first_position, 0, "first_position");
  c.at_least(positions.dim(0), first_position + T, "the number of positions in the table");
}

void PositionBwd::check() const {
  const Checker c(kName);
  c.dense({"dy", dy}, {-1, -1}, kFloats);
  c.dense({"dpositions", dpositions}, {-1, dy.dim(1)}, gradients_of(dy.dtype));
  c.at_least(T, 1, "T");
  c.require(dy.dim(0) % T == 0, "the tokens must be whole rows of T");
  c.at_least(dpositions.dim(0), T, "the number of positions in the table");
  c.separate({{"dpositions", dpositions}}, {{"dy", dy}});
}

void EmbeddingBwd::check() const {
  const Checker c(kName);
  c.dense({"ids", ids}, {-1}, {DType::i32});
  c.dense({"dy", dy}, {ids.dim(0), -1}, kFloats);
  c.dense({"dtable", dtable}, {-1, dy.dim(1)}, gradients_of(dy.dtype));
  c.scratch(scratch);
  c.separate({{"dtable", dtable}, {"scratch", scratch}}, {{"ids", ids}, {"dy", dy}});
}

// ---- norm and rope ------------------------------------------------------------------------------------

void RmsNormFwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  c.at_least(x.dim(1), 1, "the width of x");
  c.dense({"y", y}, {x.dim(0), x.dim(1)}, {x.dtype});
  c.dense({"rstd", rstd}, {x.dim(0)}, {DType::f32});
  c.separate({{"y", y}, {"rstd", rstd}}, {{"x", x}}, {"x"});
}

void RmsNormBwd::check() const {
  const Checker c(kName);
  c.dense({"y", y}, {-1, -1}, kFloats);
  c.at_least(y.dim(1), 1, "the width of y");
  c.dense({"rstd", rstd}, {y.dim(0)}, {DType::f32});
  c.dense({"dy", dy}, {y.dim(0), y.dim(1)}, {y.dtype});
  c.dense({"dx", dx}, {y.dim(0), y.dim(1)}, {y.dtype});
  const std::initializer_list<Field> inputs = {{"dy", dy}, {"y", y}, {"rstd", rstd}};
  if (accumulate) {
    c.separate({{"dx", dx}}, inputs);
  } else {
    c.separate({{"dx", dx}}, inputs, {"dy"});
  }
}

void LayerNormFwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  const std::int64_t N = x.dim(0), C = x.dim(1);
  c.at_least(C, 1, "the width of x");
  c.dense({"weight", weight}, {C}, {DType::f32});
  if (bias.defined()) c.dense({"bias", bias}, {C}, {DType::f32});
  c.dense({"y", y}, {N, C}, {x.dtype});
  if (mean.defined()) c.dense({"mean", mean}, {N}, {DType::f32});
  c.dense({"rstd", rstd}, {N}, {DType::f32});
  c.separate({{"y", y}, {"mean", mean}, {"rstd", rstd}}, {{"x", x}, {"weight", weight}, {"bias", bias}},
             {"x"});
}

void LayerNormBwd::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1, -1}, kFloats);
  const std::int64_t N = x.dim(0), C = x.dim(1);
  c.at_least(C, 1, "the width of x");
  if (mean.defined()) c.dense({"mean", mean}, {N}, {DType::f32});
  c.dense({"rstd", rstd}, {N}, {DType::f32});
  c.dense({"weight", weight}, {C}, {DType::f32});
  c.dense({"dy", dy}, {N, C}, {x.dtype});
  c.dense({"dx", dx}, {N, C}, {x.dtype});
  c.dense({"dweight", dweight}, {C}, {DType::f32});
  if (dbias.defined()) c.dense({"dbias", dbias}, {C}, {DType::f32});
  c.scratch(scratch);
  const std::initializer_list<Field> outputs = {
      {"dx", dx}, {"dweight", dweight}, {"dbias", dbias}, {"scratch", scratch}};
  const std::initializer_list<Field> inputs = {
      {"dy", dy}, {"x", x}, {"mean", mean}, {"rstd", rstd}, {"weight", weight}};
  if (accumulate) {
    c.separate(outputs, inputs);
  } else {
    c.separate(outputs, inputs, {"dy"});
  }
}

void RopeTable::check() const {
  const Checker c(kName);
  c.dense({"cos", cos}, {-1, -1}, kFloats);
  c.dense({"sin", sin}, {cos.dim(0), cos.dim(1)}, {cos.dtype});
  c.require(base > 0, "base must be positive");
  c.separate({{"cos", cos}, {"sin", sin}}, {});
}

namespace {

// What the two directions share: heads of even width, tokens in whole rows, a table that reaches the last
// position.
void check_rope(const Checker& c, const Field& y, const TensorView& rstd, const TensorView& cos,
                const TensorView& sin, std::int64_t T, std::int64_t positions) {
  c.dense(y, {-1, -1, -1}, kFloats);
  const std::int64_t N = y.view.dim(0), D = y.view.dim(2);
  c.require(D >= 2 && D % 2 == 0, "the head width must be even");
  if (rstd.defined()) c.dense({"rstd", rstd}, {N, y.view.dim(1)}, {DType::f32});
  c.dense({"cos", cos}, {-1, D / 2}, {y.view.dtype});
  c.dense({"sin", sin}, {cos.dim(0), D / 2}, {y.view.dtype});
  c.at_least(T, 1, "T");
  c.require(N % T == 0, "the tokens must be whole rows of T");
  c.at_least(cos.dim(0), positions, "the number of positions in the table");
}

}  // namespace

void RopeNormFwd::check() const {
  const Checker c(kName);
  c.at_least(first_position, 0, "first_position");
  check_rope(c, {"x", x}, rstd, cos, sin, T, first_position + T);
  c.dense({"y", y}, {x.dim(0), x.dim(1), x.dim(2)}, {x.dtype});
  c.separate({{"y", y}, {"rstd", rstd}}, {{"x", x}, {"cos", cos}, {"sin", sin}}, {"x"});
}

void RopeNormBwd::check() const {
  const Checker c(kName);
  const Field heads = rstd.defined() ? Field{"y", y} : Field{"dy", dy};
  check_rope(c, heads, rstd, cos, sin, T, T);
  c.dense({"dy", dy}, {heads.view.dim(0), heads.view.dim(1), heads.view.dim(2)}, {heads.view.dtype});
  c.dense({"dx", dx}, {dy.dim(0), dy.dim(1), dy.dim(2)}, {dy.dtype});
  c.separate({{"dx", dx}}, {{"dy", dy}, {"y", y}, {"rstd", rstd}, {"cos", cos}, {"sin", sin}}, {"dy"});
}

// ---- attention ----------------------------------------------------------------------------------------

namespace {

void check_qkv(const Checker& c, const TensorView& q, const TensorView& k, const TensorView& v) {
  c.dense({"q", q}, {-1, -1, -1, -1}, kFloats);
  const std::int64_t H = q.dim(2), D = q.dim(3);
  c.dense({"k", k}, {q.dim(0), -1, -1, D}, {q.dtype});
  c.dense({"v", v}, {q.dim(0), k.dim(1), k.dim(2), D}, {q.dtype});
  c.at_least(D, 1, "the head width");
  c.at_least(k.dim(2), 1, "the number of key heads");
  c.require(H % k.dim(2) == 0, "the query heads must be a multiple of the key heads");
}

}  // namespace

void AttentionFwd::check() const {
  const Checker c(kName);
  check_qkv(c, q, k, v);
  const std::int64_t B = q.dim(0), Tq = q.dim(1), H = q.dim(2), D = q.dim(3);
  c.at_least(k.dim(1), Tq, "the number of keys (no query may come before the first key)");
  c.dense({"y", y}, {B, Tq, H, D}, {q.dtype});
  c.dense({"lse", lse}, {B, H, Tq}, {DType::f32});
  c.scratch(scratch);
  c.separate({{"y", y}, {"lse", lse}, {"scratch", scratch}}, {{"q", q}, {"k", k}, {"v", v}});
  check_dropout(c, dropout, rng, "dropout");
  c.require(dropout == 0 || k.dim(1) == Tq, "dropout needs as many keys as queries");
  c.at_least(first_row, 0, "first_row");
}

void AttentionBwd::check() const {
  const Checker c(kName);
  check_qkv(c, q, k, v);
  const std::int64_t B = q.dim(0), T = q.dim(1), H = q.dim(2), G = k.dim(2), D = q.dim(3);
  c.require(k.dim(1) == T, "the backward pass needs as many keys as queries");
  c.dense({"y", y}, {B, T, H, D}, {q.dtype});
  c.dense({"lse", lse}, {B, H, T}, {DType::f32});
  c.dense({"dy", dy}, {B, T, H, D}, {q.dtype});
  c.dense({"dq", dq}, {B, T, H, D}, {q.dtype});
  c.dense({"dk", dk}, {B, T, G, D}, {q.dtype});
  c.dense({"dv", dv}, {B, T, G, D}, {q.dtype});
  c.scratch(scratch);
  c.separate({{"dq", dq}, {"dk", dk}, {"dv", dv}, {"scratch", scratch}},
             {{"q", q}, {"k", k}, {"v", v}, {"y", y}, {"lse", lse}, {"dy", dy}});
  check_dropout(c, dropout, rng, "dropout");
  c.at_least(first_row, 0, "first_row");
}

// ---- matrix products ----------------------------------------------------------------------------------

void Matmul::check() const {
  const Checker checker(kName);
  checker.pitched({"a", a}, {-1, -1}, kFloats);
  switch (layout) {
    case GemmLayout::nt: checker.pitched({"b", b}, {-1, a.dim(1)}, {a.dtype}); break;
    case GemmLayout::nn: checker.pitched({"b", b}, {a.dim(1), -1}, {a.dtype}); break;
    case GemmLayout::tn: checker.pitched({"b", b}, {a.dim(0), -1}, {a.dtype}); break;
  }
  const std::int64_t rows = layout == GemmLayout::tn ? a.dim(1) : a.dim(0);
  const std::int64_t cols = layout == GemmLayout::nt ? b.dim(0) : b.dim(1);
  if (layout == GemmLayout::tn && a.dtype == DType::f16) {
    checker.pitched({"c", c}, {rows, cols}, kF32);  // a weight's gradient
  } else {
    checker.pitched({"c", c}, {rows, cols}, {DType::f32, a.dtype});  // never narrower than the operands
  }
  if (bias.defined()) {
    checker.require(layout == GemmLayout::nt, "bias belongs to the nt layout");
    checker.require(!accumulate, "bias cannot be added together with accumulate");
    checker.dense({"bias", bias}, {cols}, {DType::f32});
    checker.aligned16({"bias", bias});
  }
  checker.scratch(scratch);
  checker.separate({{"c", c}, {"scratch", scratch}}, {{"a", a}, {"b", b}, {"bias", bias}});
}

void PackedMatmul::check() const {
  const Checker c(kName);
  c.packed(w);
  c.require(layout != GemmLayout::tn, "a packed operand has no tn layout: dW is a plain product");
  const bool nt = layout == GemmLayout::nt;
  QT_CHECK(x.dtype != DType::f16, DTypeError,
           "{}: x is {}, but packed weights are multiplied with f32 or bf16 activations only", kName,
           dtype_name(x.dtype));
  c.dense({"x", x}, {-1, nt ? w.K : w.N}, {DType::f32, DType::bf16});
  c.dense({"y", y}, {x.dim(0), nt ? w.N : w.K}, {x.dtype});
  if (bias.defined()) {
    c.require(nt, "bias belongs to the nt layout");
    c.dense({"bias", bias}, {w.N}, {DType::f32});
    c.aligned16({"bias", bias});
  }
  c.scratch(scratch);
  c.separate({{"y", y}, {"scratch", scratch}},
             {{"x", x}, {"w.codes", w.codes}, {"w.absmax", w.absmax}, {"bias", bias}});
}

void ColumnSum::check() const {
  const Checker c(kName);
  c.pitched({"x", x}, {-1, -1}, kFloats);
  c.dense({"out", out}, {x.dim(1)}, {DType::f32});
  c.scratch(scratch);
  c.separate({{"out", out}, {"scratch", scratch}}, {{"x", x}});
}

// ---- loss ---------------------------------------------------------------------------------------------

TensorView dlogits_view(const TensorView& logits, DType dtype) {
  check_shape(logits, {-1, -1}, "dlogits_view", "logits");
  check_dtype(logits, {DType::f32}, "dlogits_view", "logits");
  TensorView view(logits.data, dtype, {logits.dim(0), logits.dim(1)}, logits.space);
  view.pitch = logits.pitch * dtype_bytes(DType::f32) / dtype_bytes(dtype);
  check_dtype(view, kFloats, "dlogits_view", "dtype");
  return view;
}

void SoftcapCrossEntropy::check() const {
  const Checker c(kName);
  c.dense({"logits", logits}, {-1, -1}, {DType::f32});
  c.at_least(logits.dim(1), 1, "the vocabulary");
  c.dense({"targets", targets}, {logits.dim(0)}, {DType::i32});
  c.dense({"nll", nll}, {logits.dim(0)}, {DType::f32});
  c.require(softcap >= 0, "softcap must not be negative");
  c.separate({{"nll", nll}}, {{"logits", logits}, {"targets", targets}});
  if (!dlogits.defined()) return;
  c.pitched({"dlogits", dlogits}, {logits.dim(0), logits.dim(1)}, kFloats);
  const TensorView want = dlogits_view(logits, dlogits.dtype);
  c.require(dlogits.data == want.data && (dlogits.dim(0) <= 1 || dlogits.pitch == want.pitch),
            "dlogits must lie row by row over logits (dlogits_view makes that view)");
  c.separate({{"dlogits", dlogits}}, {{"targets", targets}});
}

void Softcap::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1}, {DType::f32});
  c.require(softcap > 0, "softcap must be positive");
}

void SumLoss::check() const {
  const Checker c(kName);
  c.dense({"nll", nll}, {-1}, {DType::f32});
  c.dense({"targets", targets}, {nll.dim(0)}, {DType::i32});
  c.dense({"totals", totals}, {2}, {DType::f64});
  c.separate({{"totals", totals}}, {{"nll", nll}, {"targets", targets}});
}

// ---- optimizer ----------------------------------------------------------------------------------------

void SumSquares::check() const {
  const Checker c(kName);
  c.dense({"x", x}, {-1}, kGradients);
  c.dense({"out", out}, {1}, {DType::f64});
  c.scratch(scratch);
  c.separate({{"out", out}, {"scratch", scratch}}, {{"x", x}});
}

void PrepareStep::check() const {
  const Checker c(kName);
  c.dense({"grad_sumsq", grad_sumsq}, {-1}, {DType::f64});
  c.dense({"totals", totals}, {2}, {DType::f64});
  c.dense({"params", params}, {kStepParamFloats}, {DType::f32});
  c.dense({"stats", stats}, {kStepStatDoubles}, {DType::f64});
  c.require(max_norm >= 0, "max_norm must not be negative");
  c.require(gradient_tokens > 0, "gradient_tokens must be positive");
  c.separate({{"params", params}, {"stats", stats}}, {{"grad_sumsq", grad_sumsq}, {"totals", totals}});
}

namespace {

void check_master(const Checker& c, const TensorView& master, const RngStream& rng,
                  std::int64_t first_element) {
  c.dense({"master", master}, {-1}, kGradients);
  if (master.dtype == DType::f32) return;
  c.require(rng.purpose == RngPurpose::stochastic_rounding,
            "rng must be of purpose stochastic_rounding where master is bf16");
  c.at_least(first_element, 0, "first_element");
}

}  // namespace

void AdamW::check() const {
  const Checker c(kName);
  check_master(c, master, rng, first_element);
  const std::int64_t n = master.dim(0);
  c.dense({"grad", grad}, {n}, kGradients);
  c.dense({"m", m}, {n}, {DType::f32});
  c.dense({"v", v}, {n}, {DType::f32});
  c.dense({"params", params}, {kStepParamFloats}, {DType::f32});
  c.require(static_cast<int>(group) < kParamGroups, "unknown parameter group");
  c.separate({{"master", master}, {"m", m}, {"v", v}}, {{"grad", grad}, {"params", params}});
}

void AdamW8::check() const {
  const Checker c(kName);
  check_master(c, master, rng, first_element);
  const std::int64_t n = master.dim(0), blocks = q8_scale_count(n);
  c.dense({"grad", grad}, {n}, kGradients);
  c.dense({"m_codes", m_codes}, {n}, {DType::u8});
  c.dense({"v_codes", v_codes}, {n}, {DType::u8});
  c.dense({"m_absmax", m_absmax}, {blocks}, {DType::f32});
  c.dense({"v_absmax", v_absmax}, {blocks}, {DType::f32});
  c.dense({"params", params}, {kStepParamFloats}, {DType::f32});
  c.require(static_cast<int>(group) < kParamGroups, "unknown parameter group");
  c.separate({{"master", master},
              {"m_codes", m_codes},
              {"v_codes", v_codes},
              {"m_absmax", m_absmax},
              {"v_absmax", v_absmax}},
             {{"grad", grad}, {"params", params}});
}

// ---- quantization -------------------------------------------------------------------------------------

void Quantize::check() const {
  const Checker c(kName);
  c.packed(w);
  c.dense({"src", src}, {-1}, kGradients);
  c.dense({"bad_index", bad_index}, {1}, {DType::f64});
  const std::int64_t n = src.dim(0), block = format_info(w.format).block_elems;
  c.at_least(first, 0, "first");
  c.at_least(w.elems() - first, n, "the number of elements left from first");
  c.require(first % block == 0, "first must be a multiple of the format's block");
  c.require(n % block == 0 || first + n == w.elems(),
            "a range that does not end the matrix must be whole blocks");
  c.separate({{"w.codes", w.codes}, {"w.absmax", w.absmax}, {"bad_index", bad_index}}, {{"src", src}});
}

void Dequantize::check() const {
  const Checker c(kName);
  c.packed(w);
  c.dense({"dst", dst}, {-1}, {DType::f32, DType::bf16});
  c.at_least(first, 0, "first");
  c.at_least(w.elems() - first, dst.dim(0), "the number of elements left from first");
  c.require(w.layout == PackedLayout::flat || (first % kTileSide == 0 && dst.dim(0) % kTileSide == 0),
            "of a matrix in tiles, first and the size of dst must be multiples of 64");
  c.separate({{"dst", dst}}, {{"w.codes", w.codes}, {"w.absmax", w.absmax}});
}

}  // namespace qt

// cost() of every op: what it moves and computes.
//
// model_flops follows nanochat's estimate, 6 (matmul weights) + 12 L H D T per token and step: products count
// 2 M N K each, attention the full square, everything else nothing. executed_flops counts what the kernels
// do; for elementwise ops that is arithmetic per element, to within a small factor, and never decides
// anything: they are bound by the bytes they move.
#include <algorithm>

#include "kernels/ops.h"

namespace qt {

namespace {

double bytes(const TensorView& v) { return v.defined() ? static_cast<double>(v.bytes()) : 0.0; }

double elems(const TensorView& v) { return static_cast<double>(v.elems()); }

double packed_bytes_of(const PackedView& w) { return static_cast<double>(w.bytes()); }

// Share of a matrix that a range of `count` elements touches.
double packed_range_bytes(const PackedView& w, double count) {
  return w.elems() == 0 ? 0.0 : packed_bytes_of(w) * (count / static_cast<double>(w.elems()));
}

// Query-key pairs that a causal mask leaves, per head and row of the batch.
double causal_pairs(std::int64_t Tq, std::int64_t Tk) {
  const auto q = static_cast<double>(Tq), k = static_cast<double>(Tk);
  return q * (k - q) + q * (q + 1) / 2;
}

Cost elementwise(double flops_per_elem, const TensorView& shape, double read, double written) {
  return Cost{.executed_flops = flops_per_elem * elems(shape), .read_bytes = read, .written_bytes = written};
}

}  // namespace

Cost Fill::cost() const { return elementwise(0, x, 0, bytes(x)); }

Cost Cast::cost() const { return elementwise(0, x, bytes(x), bytes(y)); }

Cost Add::cost() const { return elementwise(1, y, bytes(a) + bytes(b), bytes(y)); }

Cost Multiply::cost() const { return elementwise(1, y, bytes(a) + bytes(b), bytes(y)); }

Cost MultiplyBwd::cost() const {
  return elementwise(2, dy, bytes(a) + bytes(b) + bytes(dy), bytes(da) + bytes(db));
}

// Four draws share the ten rounds of a generator block; the inverse distribution is a ratio of two
// polynomials.
Cost InitNormal::cost() const { return elementwise(60, x, 0, bytes(x)); }

Cost Relu2Fwd::cost() const { return elementwise(2, x, bytes(x), bytes(y)); }

Cost Relu2Bwd::cost() const { return elementwise(3, x, bytes(x) + bytes(dy), bytes(dx)); }

// One exponential and a polynomial of degree nine.
Cost GeluFwd::cost() const { return elementwise(40, x, bytes(x), bytes(y)); }

Cost GeluBwd::cost() const { return elementwise(44, x, bytes(x) + bytes(dy), bytes(dx)); }

// As InitNormal: four draws share a generator block.
Cost Dropout::cost() const { return elementwise(rate == 0 ? 0 : 32, x, bytes(x), bytes(y)); }

// Of the tables only the rows asked for are read.
Cost EmbeddingFwd::cost() const {
  const double position_bytes =
      positions.defined() ? static_cast<double>(T * y.dim(1) * dtype_bytes(y.dtype)) : 0;
  return elementwise(positions.defined() ? 1 : 0, y, bytes(ids) + bytes(y) + position_bytes, bytes(y));
}

Cost PositionBwd::cost() const {
  const double table_bytes = static_cast<double>(T * dy.dim(1) * dtype_bytes(dpositions.dtype));
  return elementwise(1, dy, bytes(dy) + table_bytes, table_bytes);
}

// dtable: at most one row per token is read and written.
Cost EmbeddingBwd::cost() const {
  const double rows = std::min(elems(ids), static_cast<double>(dtable.dim(0)));
  const double table_bytes = rows * static_cast<double>(dtable.dim(1) * dtype_bytes(dtable.dtype));
  return elementwise(1, dy, bytes(ids) + bytes(dy) + table_bytes, table_bytes);
}

Cost RmsNormFwd::cost() const { return elementwise(3, x, bytes(x), bytes(y) + bytes(rstd)); }

Cost RmsNormBwd::cost() const {
  return elementwise(accumulate ? 6 : 5, y, bytes(y) + bytes(dy) + bytes(rstd) + (accumulate ? bytes(dx) : 0),
                     bytes(dx));
}

Cost LayerNormFwd::cost() const {
  return elementwise(7, x, bytes(x) + bytes(weight) + bytes(bias), bytes(y) + bytes(mean) + bytes(rstd));
}

Cost LayerNormBwd::cost() const {
  const double gradients = bytes(dweight) + bytes(dbias);
  return elementwise(14, x,
                     bytes(x) + bytes(dy) + bytes(mean) + bytes(rstd) + bytes(weight) + gradients +
                         (accumulate ? bytes(dx) : 0),
                     bytes(dx) + gradients);
}

// A sine and a cosine with their range reduction.
Cost RopeTable::cost() const { return elementwise(40, cos, 0, bytes(cos) + bytes(sin)); }

Cost RopeNormFwd::cost() const {
  return elementwise(6, x, bytes(x) + bytes(cos) + bytes(sin), bytes(y) + bytes(rstd));
}

Cost RopeNormBwd::cost() const {
  return elementwise(8, dy, bytes(y) + bytes(dy) + bytes(rstd) + bytes(cos) + bytes(sin), bytes(dx));
}

// Two products: scores and their product with v.
Cost AttentionFwd::cost() const {
  const double heads = static_cast<double>(q.dim(0) * q.dim(2)), D = static_cast<double>(q.dim(3));
  const double square = static_cast<double>(q.dim(1)) * static_cast<double>(k.dim(1));
  return Cost{.model_flops = 2 * 2 * heads * square * D,
              .executed_flops = 2 * 2 * heads * causal_pairs(q.dim(1), k.dim(1)) * D,
              .read_bytes = bytes(q) + bytes(k) + bytes(v),
              .written_bytes = bytes(y) + bytes(lse)};
}

// The convention counts the four products that the mathematics needs; the two kernels run seven, because each
// computes scores and dp for itself: (s, dp, dq) and (s, dp, dv, dk).
Cost AttentionBwd::cost() const {
  const double heads = static_cast<double>(q.dim(0) * q.dim(2)), D = static_cast<double>(q.dim(3));
  const double T = static_cast<double>(q.dim(1));
  return Cost{.model_flops = 4 * 2 * heads * T * T * D,
              .executed_flops = 7 * 2 * heads * causal_pairs(q.dim(1), q.dim(1)) * D,
              .read_bytes = 2 * (bytes(q) + bytes(k) + bytes(v) + bytes(dy) + bytes(lse)) + bytes(y),
              .written_bytes = bytes(dq) + bytes(dk) + bytes(dv)};
}

Cost Matmul::cost() const {
  const double inner = static_cast<double>(layout == GemmLayout::tn ? a.dim(0) : a.dim(1));
  const double flops = 2 * elems(c) * inner;
  return Cost{.model_flops = flops,
              .executed_flops = flops + (bias.defined() ? elems(c) : 0),
              .read_bytes = bytes(a) + bytes(b) + bytes(bias) + (accumulate ? bytes(c) : 0),
              .written_bytes = bytes(c)};
}

Cost PackedMatmul::cost() const {
  const double flops = 2 * static_cast<double>(x.dim(0)) * static_cast<double>(w.elems());
  return Cost{.model_flops = flops,
              .executed_flops = flops + (bias.defined() ? elems(y) : 0),
              .read_bytes = bytes(x) + packed_bytes_of(w) + bytes(bias),
              .written_bytes = bytes(y)};
}

Cost ColumnSum::cost() const { return elementwise(1, x, bytes(x) + bytes(out), bytes(out)); }

Cost SoftcapCrossEntropy::cost() const {
  const double passes = dlogits.defined() ? 2 : 1;  // the second pass scales and subtracts
  return elementwise(20 * passes, logits, passes * bytes(logits) + bytes(targets),
                     bytes(nll) + bytes(dlogits));
}

Cost Softcap::cost() const { return elementwise(12, x, bytes(x), bytes(x)); }

Cost SumLoss::cost() const {
  return elementwise(1, nll, bytes(nll) + bytes(targets) + bytes(totals), bytes(totals));
}

Cost SumSquares::cost() const { return elementwise(2, x, bytes(x), bytes(out)); }

Cost PrepareStep::cost() const {
  return elementwise(1, params, bytes(grad_sumsq) + bytes(totals), bytes(params) + bytes(stats));
}

Cost AdamW::cost() const {
  const double state = bytes(master) + bytes(m) + bytes(v);
  return elementwise(14, master, state + bytes(grad) + bytes(params), state);
}

Cost AdamW8::cost() const {
  const double state = bytes(master) + bytes(m_codes) + bytes(v_codes) + bytes(m_absmax) + bytes(v_absmax);
  return elementwise(40, master, state + bytes(grad) + bytes(params), state);
}

Cost Quantize::cost() const { return elementwise(8, src, bytes(src), packed_range_bytes(w, elems(src))); }

Cost Dequantize::cost() const { return elementwise(1, dst, packed_range_bytes(w, elems(dst)), bytes(dst)); }

}  // namespace qt

// Matrix products of dense operands on the cpu.
#include "kernels/cpu/gemm.h"

namespace qt::cpu {

void run(const Matmul& op, Context& ctx) {
  const GemmShape shape = gemm_shape(op);
  if (shape.M == 0 || shape.N == 0) return;
  QT_CHECK(shape.R >= 1, ShapeError, "{}: nothing to sum over: a {}, b {}", Matmul::kName, op.a.shape(),
           op.b.shape());
  const Operand a = Operand::rows(op.a.data, op.a.dtype, op.a.pitch);
  run_product({.shape = shape,
               .grid = cpu_gemm_grid(shape, op.layout),
               .a = op.layout == GemmLayout::tn ? a.transposed() : a,
               .b = {.dense = &op.b, .transposed = op.layout == GemmLayout::nt},
               .c = op.c,
               .accumulate = op.accumulate,
               .bias = op.bias.defined() ? op.bias.as<float>() : nullptr,
               .pieces = op.scratch.data},
              ctx);
}

}  // namespace qt::cpu

// Matrix products with a packed weight on the cpu.
#include "kernels/cpu/gemm.h"

namespace qt::cpu {

void run(const PackedMatmul& op, Context& ctx) {
  require_flat(op.w, PackedMatmul::kName);
  const GemmShape shape{.M = op.x.dim(0), .N = op.y.dim(1), .R = op.x.dim(1)};
  if (shape.M == 0) return;
  run_product({.shape = shape,
               .grid = cpu_gemm_grid(shape, op.layout),
               .a = Operand::rows(op.x.data, op.x.dtype, op.x.pitch),
               .b = {.packed = &op.w, .transposed = op.layout == GemmLayout::nt},
               .c = op.y,
               .bias = op.bias.defined() ? op.bias.as<float>() : nullptr},
              ctx);
}

}  // namespace qt::cpu

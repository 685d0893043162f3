// Plain products: by the library, or by our own kernel where the library cannot keep the contract.
#pragma once

#include "kernels/cuda/blas.h"
#include "kernels/cuda/context.h"

namespace qt::cuda {

// As Blas::multiply. bias, where it is not null: f32 [N], aligned to 16 bytes, added to the f32 sum before
// its rounding; then b must be transposed, a not, and nothing accumulates.
void dense_product(const BlasProduct& product, const float* bias, const Context& context);

}  // namespace qt::cuda

// Plain products: by the library, or by our own kernel where the library cannot keep the contract.
#pragma once

#include "kernels/cuda/blas.h"
#include "kernels/cuda/context.h"

namespace qt::cuda {

// As Blas::multiply, and with a bias also into 16-bit results (then b must be transposed, and a not).
void dense_product(const BlasProduct& product, const Context& context);

}  // namespace qt::cuda

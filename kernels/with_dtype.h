// From a dtype of a view to a type of the compiler: for the host code of implementations, once per call of an
// op.
#pragma once

#include "src/core/error.h"
#include "src/core/tensor.h"

namespace qt {

// Calls fn.operator()<T>() with the type behind a compute dtype; check() has let no other through.
template <class Fn>
decltype(auto) with_float(DType dtype, Fn&& fn) {
  if (dtype == DType::bf16) return fn.template operator()<bf16>();
  if (dtype == DType::f16) return fn.template operator()<f16>();
  QT_CHECK(dtype == DType::f32, DTypeError, "no arithmetic on {}", dtype_name(dtype));
  return fn.template operator()<float>();
}

// Calls fn.operator()<P, G>() with the types of a master copy and a gradient, each f32 | bf16.
template <class Fn>
void with_master_and_gradient(DType master, DType gradient, Fn&& fn) {
  const auto with_master = [&]<class P>() {
    if (gradient == DType::bf16) return fn.template operator()<P, bf16>();
    fn.template operator()<P, float>();
  };
  if (master == DType::bf16) return with_master.template operator()<bf16>();
  with_master.template operator()<float>();
}

}  // namespace qt

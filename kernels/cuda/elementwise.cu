// Ops that treat every element alike and touch memory once: fill, cast, add, multiply.
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

template <class T>
__global__ void fill_kernel(T* x, std::int64_t n, T value) {
  for (std::int64_t i = global_thread(); i < n; i += global_threads()) x[i] = value;
}

template <class From, class To>
__global__ void cast_kernel(const From* x, To* y, std::int64_t n) {
  for_each_vector(n, [&](std::int64_t first, int count) {
    const auto in = load_floats(x + first, count);
    store_floats(y + first, count, in);
  });
}

// y may be a or b.
template <class T, class Fn>
__device__ void for_each_pair(const T* a, const T* b, T* y, std::int64_t n, Fn&& fn) {
  for_each_vector(n, [&](std::int64_t first, int count) {
    const auto left = load_floats(a + first, count), right = load_floats(b + first, count);
    Floats result;
    for (int i = 0; i < kVectorElems; ++i) result.x[i] = fn(left.x[i], right.x[i]);
    store_floats(y + first, count, result);
  });
}

template <class T>
__global__ void add_kernel(const T* a, const T* b, T* y, std::int64_t n) {
  for_each_pair(a, b, y, n, [](float left, float right) { return left + right; });
}

template <class T>
__global__ void multiply_kernel(const T* a, const T* b, T* y, std::int64_t n) {
  for_each_pair(a, b, y, n, [](float left, float right) { return left * right; });
}

// Everything is loaded before anything is stored: da may be dy, and db may be b.
template <class T>
__global__ void multiply_bwd_kernel(const T* a, const T* b, const T* dy, T* da, T* db, std::int64_t n) {
  for_each_vector(n, [&](std::int64_t first, int count) {
    Floats left = load_floats(a + first, count), right = load_floats(b + first, count);
    const auto gradient = load_floats(dy + first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      left.x[i] *= gradient.x[i];
      right.x[i] *= gradient.x[i];
    }
    store_floats(da + first, count, right);
    store_floats(db + first, count, left);
  });
}

template <class T>
void fill(const Fill& op, T value, const Context& context) {
  const std::int64_t n = op.x.elems();
  launch(elementwise_shape("fill_kernel", n, context), fill_kernel<T>, op.x.as<T>(), n, value);
}

}  // namespace

bool has_code_for_card() {
  cudaFuncAttributes attributes;
  const cudaError_t result =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(fill_kernel<float>));
  if (result == cudaErrorNoKernelImageForDevice || result == cudaErrorInvalidDeviceFunction ||
      result == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    return false;
  }
  check(result, "cudaFuncGetAttributes");
  return true;
}

void run(const Fill& op, const Context& context) {
  const auto value = static_cast<float>(op.value);
  switch (op.x.dtype) {
    case DType::f32: return fill<float>(op, value, context);
    case DType::bf16: return fill<bf16>(op, to_bf16(value), context);
    case DType::f16: return fill<f16>(op, to_f16(value), context);
    case DType::f64: return fill<double>(op, op.value, context);
    case DType::u8: return fill<std::uint8_t>(op, static_cast<std::uint8_t>(op.value), context);
    case DType::i32: return fill<std::int32_t>(op, static_cast<std::int32_t>(op.value), context);
    case DType::i64: break;  // check() refuses it: a type of files
  }
}

void run(const Cast& op, const Context& context) {
  with_float(op.x.dtype, [&]<class From>() {
    with_float(op.y.dtype, [&]<class To>() {
      launch(elementwise_shape("cast_kernel", op.x.elems(), context), cast_kernel<From, To>, op.x.as<From>(),
             op.y.as<To>(), op.x.elems());
    });
  });
}

void run(const Add& op, const Context& context) {
  with_float(op.a.dtype, [&]<class T>() {
    launch(elementwise_shape("add_kernel", op.a.elems(), context), add_kernel<T>, op.a.as<T>(), op.b.as<T>(),
           op.y.as<T>(), op.a.elems());
  });
}

void run(const Multiply& op, const Context& context) {
  with_float(op.a.dtype, [&]<class T>() {
    launch(elementwise_shape("multiply_kernel", op.a.elems(), context), multiply_kernel<T>, op.a.as<T>(),
           op.b.as<T>(), op.y.as<T>(), op.a.elems());
  });
}

void run(const MultiplyBwd& op, const Context& context) {
  with_float(op.a.dtype, [&]<class T>() {
    launch(elementwise_shape("multiply_bwd_kernel", op.a.elems(), context), multiply_bwd_kernel<T>,
           op.a.as<T>(), op.b.as<T>(), op.dy.as<T>(), op.da.as<T>(), op.db.as<T>(), op.a.elems());
  });
}

}  // namespace qt::cuda

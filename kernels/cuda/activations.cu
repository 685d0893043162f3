// The activations of the MLP, forward and backward: ReLU^2 and the exact GELU.
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/normal.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

// max(x, 0) that lets a NaN through: a diverged run must not look healthy behind an activation.
__device__ inline float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ inline float gelu_slope(float x) {
  const Normal normal = normal_of(x);
  return fmaf(x, normal.bell * kNormalDensityAt0, normal.cdf);
}

template <class T, class Fn>
__device__ void for_each_element(const T* x, T* y, std::int64_t n, Fn&& fn) {
  for_each_vector(n, [&](std::int64_t first, int count) {
    Floats f = load_floats(x + first, count);
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) f.x[i] = fn(f.x[i]);
    store_floats(y + first, count, f);
  });
}
// dx may be dy.
template <class T, class Fn>
__device__ void for_each_gradient(const T* x, const T* dy, T* dx, std::int64_t n, Fn&& fn) {
  for_each_vector(n, [&](std::int64_t first, int count) {
    const Floats in = load_floats(x + first, count);
    Floats f = load_floats(dy + first, count);
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) f.x[i] = fn(in.x[i], f.x[i]);
    store_floats(dx + first, count, f);
  });
}

template <class T>
__global__ void relu2_fwd_kernel(const T* x, T* y, std::int64_t n) {
  for_each_element(x, y, n, [](float v) {
    const float r = relu(v);
    return r * r;
  });
}

template <class T>
__global__ void relu2_bwd_kernel(const T* x, const T* dy, T* dx, std::int64_t n) {
  for_each_gradient(x, dy, dx, n, [](float v, float dv) {
    const float r = relu(v);
    return (r + r) * dv;
  });
}

template <class T>
__global__ void gelu_fwd_kernel(const T* x, T* y, std::int64_t n) {
  for_each_element(x, y, n, [](float v) { return v * normal_of(v).cdf; });
}

template <class T>
__global__ void gelu_bwd_kernel(const T* x, const T* dy, T* dx, std::int64_t n) {
  for_each_gradient(x, dy, dx, n, [](float v, float dv) { return dv * gelu_slope(v); });
}

}  // namespace

void run(const Relu2Fwd& op, const Context& context) {
  with_float(op.x.dtype, [&]<class T>() {
    const std::int64_t n = op.x.elems();
    launch(elementwise_shape("relu2_fwd_kernel", n, context), relu2_fwd_kernel<T>, op.x.as<T>(), op.y.as<T>(),
           n);
  });
}

void run(const Relu2Bwd& op, const Context& context) {
  with_float(op.x.dtype, [&]<class T>() {
    const std::int64_t n = op.x.elems();
    launch(elementwise_shape("relu2_bwd_kernel", n, context), relu2_bwd_kernel<T>, op.x.as<T>(),
           op.dy.as<T>(), op.dx.as<T>(), n);
  });
}

void run(const GeluFwd& op, const Context& context) {
  with_float(op.x.dtype, [&]<class T>() {
    const std::int64_t n = op.x.elems();
    launch(elementwise_shape("gelu_fwd_kernel", n, context), gelu_fwd_kernel<T>, op.x.as<T>(), op.y.as<T>(),
           n);
  });
}

void run(const GeluBwd& op, const Context& context) {
  with_float(op.x.dtype, [&]<class T>() {
    const std::int64_t n = op.x.elems();
    launch(elementwise_shape("gelu_bwd_kernel", n, context), gelu_bwd_kernel<T>, op.x.as<T>(), op.dy.as<T>(),
           op.dx.as<T>(), n);
  });
}

}  // namespace qt::cuda

// Tensors at addresses that are aligned to no more than their elements.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tests/support/case.h"

namespace qt::test {

// Tensors of a case, each beginning `skip` elements behind an address that is aligned to everything.
class Shifted {
 public:
  Shifted(Case& t, std::int64_t skip) : t_(t), skip_(skip) {}

  TensorView in(std::span<const double> x, Shape shape, DType dtype) {
    return behind(t_.in(padded(x), {skip_ + count(x)}, dtype), shape);
  }
  TensorView in_bytes(std::span<const std::uint8_t> x) {
    std::vector<std::uint8_t> all(static_cast<std::size_t>(skip_), 0x5A);
    all.insert(all.end(), x.begin(), x.end());
    return behind(t_.in_bytes(all), {static_cast<std::int64_t>(x.size())});
  }
  TensorView inout(std::span<const double> x, Shape shape, DType dtype) {
    return behind(t_.inout(padded(x), {skip_ + count(x)}, dtype), shape);
  }
  TensorView out(std::int64_t elems, Shape shape, DType dtype) {
    return inout(std::vector<double>(static_cast<std::size_t>(elems), 7.0), shape, dtype);
  }

 private:
  static std::int64_t count(std::span<const double> x) { return static_cast<std::int64_t>(x.size()); }
  std::vector<double> padded(std::span<const double> x) const {
    std::vector<double> all(static_cast<std::size_t>(skip_), 5.0);
    all.insert(all.end(), x.begin(), x.end());
    return all;
  }
  TensorView behind(const TensorView& all, Shape shape) const {
    return {all.data + skip_ * dtype_bytes(all.dtype), all.dtype, shape};
  }

  Case& t_;
  std::int64_t skip_;
};

}  // namespace qt::test

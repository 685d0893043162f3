// TensorView: a name for a piece of typed memory. Never an owner, never dereferenced outside a backend.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "src/core/error.h"
#include "src/core/half.h"

namespace qt {

enum class DType : std::uint8_t { f32, bf16, f16, f64, u8, i32, i64 };

constexpr std::int64_t dtype_bytes(DType t) {
  switch (t) {
    case DType::u8: return 1;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f64:
    case DType::i64: return 8;
  }
  return 0;
}

// "f32", "bf16", ...: the spelling of options, logs and messages.
std::string_view dtype_name(DType t);
// Throws ConfigError for an unknown name.
DType dtype_from_name(std::string_view name);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<f16>() {
  return DType::f16;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<std::uint8_t>() {
  return DType::u8;
}
template <>
constexpr DType dtype_of<std::int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<std::int64_t>() {
  return DType::i64;
}

// Where memory lives. On the cpu backend both kinds are ordinary memory, in two arenas, so that paging is
// real copies with the same accounting as on a card.
enum class Space : std::uint8_t { device, host };

// Row-major. All dimensions but the first are dense; rows (index of dimension 0) lie `pitch` elements
// apart. pitch == product of the other sizes unless an op says that it takes pitched views.
struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  Space space = Space::device;
  std::int8_t rank = 0;
  std::array<std::int64_t, 4> sizes{1, 1, 1, 1};
  std::int64_t pitch = 1;

  TensorView() = default;
  TensorView(void* memory, DType type, std::initializer_list<std::int64_t> shape,
             Space where = Space::device);

  bool defined() const { return data != nullptr; }
  std::int64_t dim(int i) const { return sizes[static_cast<std::size_t>(i)]; }
  std::int64_t row_elems() const { return sizes[1] * sizes[2] * sizes[3]; }
  std::int64_t elems() const { return sizes[0] * row_elems(); }
  std::int64_t bytes() const { return elems() * dtype_bytes(dtype); }  // without gaps between pitched rows
  bool dense() const { return rank <= 1 || sizes[0] <= 1 || pitch == row_elems(); }
  std::string shape() const;  // "[2048, 512] bf16"

  template <class T>
  T* as() const {
    QT_CHECK(dtype == dtype_of<T>(), DTypeError, "a {} view was read as {}", dtype_name(dtype),
             dtype_name(dtype_of<T>()));
    return reinterpret_cast<T*>(data);
  }

  // Rows [first, first + count) of dimension 0.
  TensorView rows(std::int64_t first, std::int64_t count) const;
  // The same dense memory under another shape; the number of elements must match.
  TensorView reshape(std::initializer_list<std::int64_t> shape) const;
  // Elements [first, first + count) of a dense view, as rank 1.
  TensorView flat(std::int64_t first, std::int64_t count) const;
  TensorView flat() const { return flat(0, elems()); }
};

// Throws ShapeError naming the op and field unless the view has this shape. -1 matches any size.
void check_shape(const TensorView& v, std::initializer_list<std::int64_t> want, std::string_view op,
                 std::string_view field);
void check_dtype(const TensorView& v, std::initializer_list<DType> allowed, std::string_view op,
                 std::string_view field);

}  // namespace qt

#include "src/core/tensor.h"

#include <algorithm>

namespace qt {

namespace {

struct DTypeName {
  DType type;
  std::string_view name;
};
constexpr DTypeName kDTypeNames[] = {{DType::f32, "f32"}, {DType::bf16, "bf16"}, {DType::f16, "fp16"},
                                     {DType::f64, "f64"}, {DType::u8, "u8"},     {DType::i32, "i32"},
                                     {DType::i64, "i64"}};

std::string shape_text(const std::int64_t* begin, const std::int64_t* end) {
  return fmt::format("[{}]", fmt::join(begin, end, ", "));
}

}  // namespace

std::string_view dtype_name(DType t) {
  for (const auto& entry : kDTypeNames) {
    if (entry.type == t) return entry.name;
  }
  return "?";
}

DType dtype_from_name(std::string_view name) {
  for (const auto& entry : kDTypeNames) {
    if (entry.name == name) return entry.type;
  }
  throw ConfigError(fmt::format("unknown data type '{}'", name), "use one of: f32, bf16, fp16");
}

TensorView::TensorView(void* memory, DType type, std::initializer_list<std::int64_t> shape, Space where)
    : data(static_cast<std::byte*>(memory)),
      dtype(type),
      space(where),
      rank(static_cast<std::int8_t>(shape.size())) {
  QT_CHECK(shape.size() >= 1 && shape.size() <= 4, ShapeError, "a view has 1 to 4 dimensions, not {}",
           shape.size());
  std::copy(shape.begin(), shape.end(), sizes.begin());
  pitch = row_elems();
}

std::string TensorView::shape() const {
  return fmt::format("{} {}", shape_text(sizes.data(), sizes.data() + rank), dtype_name(dtype));
}

TensorView TensorView::rows(std::int64_t first, std::int64_t count) const {
  QT_CHECK(first >= 0 && count >= 0 && first + count <= sizes[0], ShapeError, "rows {}..{} of {}", first,
           first + count, shape());
  TensorView v = *this;
  v.data += first * pitch * dtype_bytes(dtype);
  v.sizes[0] = count;
  return v;
}

TensorView TensorView::reshape(std::initializer_list<std::int64_t> shape_wanted) const {
  TensorView v(data, dtype, shape_wanted, space);
  QT_CHECK(dense() && v.elems() == elems(), ShapeError, "cannot view {} as {}", shape(), v.shape());
  return v;
}

TensorView TensorView::flat(std::int64_t first, std::int64_t count) const {
  QT_CHECK(dense() && first >= 0 && count >= 0 && first + count <= elems(), ShapeError,
           "elements {}..{} of {}", first, first + count, shape());
  return TensorView(data + first * dtype_bytes(dtype), dtype, {count}, space);
}

void check_shape(const TensorView& v, std::initializer_list<std::int64_t> want, std::string_view op,
                 std::string_view field) {
  bool ok = v.defined() && v.rank == static_cast<int>(want.size());
  int i = 0;
  for (const std::int64_t size : want) {
    ok = ok && (size < 0 || v.dim(i) == size);
    ++i;
  }
  QT_CHECK(ok, ShapeError, "{}: {} must be {} (-1: any), got {}", op, field,
           shape_text(want.begin(), want.end()), v.defined() ? v.shape() : "an undefined view");
}

void check_dtype(const TensorView& v, std::initializer_list<DType> allowed, std::string_view op,
                 std::string_view field) {
  if (std::find(allowed.begin(), allowed.end(), v.dtype) != allowed.end()) return;
  std::string names;
  for (const DType t : allowed) names += fmt::format("{}{}", names.empty() ? "" : ", ", dtype_name(t));
  throw DTypeError(fmt::format("{}: {} must be one of {}, got {}", op, field, names, v.shape()));
}

}  // namespace qt

// What the check() functions of the ops are written with: one Checker per call, which puts the op's name into
// every message. Internal to kernels/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "kernels/aligned.h"
#include "quant/packed.h"
#include "src/core/tensor.h"

namespace qt {

// A view with its name in messages.
struct Field {
  const char* name;
  const TensorView& view;
};

// Do two views share a byte? Exact for dense views, and for pitched ones of the same pitch (columns of one
// matrix).
inline bool share_bytes(const TensorView& a, const TensorView& b) {
  if (a.elems() == 0 || b.elems() == 0) return false;
  struct Extent {
    std::intptr_t begin, end;
    std::int64_t row_bytes, pitch_bytes;
  };
  const auto extent = [](const TensorView& v) {
    const std::int64_t size = dtype_bytes(v.dtype);
    const auto begin = reinterpret_cast<std::intptr_t>(v.data);
    const std::int64_t row_bytes = v.row_elems() * size, pitch_bytes = v.pitch * size;
    return Extent{begin, begin + (v.dim(0) - 1) * pitch_bytes + row_bytes, row_bytes, pitch_bytes};
  };
  const Extent x = extent(a), y = extent(b);
  if (x.end <= y.begin || y.end <= x.begin) return false;
  if (x.pitch_bytes == y.pitch_bytes && (!a.dense() || !b.dense())) {
    const std::int64_t pitch = x.pitch_bytes;
    const std::int64_t shift = ((y.begin - x.begin) % pitch + pitch) % pitch;  // of b's rows inside a's
    return !(shift >= x.row_bytes && shift + y.row_bytes <= pitch);
  }
  return true;
}

inline bool same_view(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.dtype == b.dtype && a.elems() == b.elems() && a.dense() && b.dense();
}

// The checks of one op, with its name in every message.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  // Shape (-1: any size), dtype, device memory, no gaps between rows.
  void dense(const Field& f, std::initializer_list<std::int64_t> want,
             std::initializer_list<DType> dtypes) const {
    pitched(f, want, dtypes);
    dense_rows(f);
  }

  // As dense(), but rows may be further apart than their length.
  void pitched(const Field& f, std::initializer_list<std::int64_t> want,
               std::initializer_list<DType> dtypes) const {
    check_shape(f.view, want, op_, f.name);
    common(f, dtypes);
    QT_CHECK(f.view.dim(0) <= 1 || f.view.pitch >= f.view.row_elems(), ShapeError,
             "{}: rows of {} {} overlap: they lie {} elements apart", op_, f.name, f.view.shape(),
             f.view.pitch);
  }

  // Any rank; dtypes as given.
  void any_shape(const Field& f, std::initializer_list<DType> dtypes) const {
    QT_CHECK(f.view.defined(), ShapeError, "{}: {} is undefined", op_, f.name);
    common(f, dtypes);
    dense_rows(f);
  }

  void same_shape(const Field& f, const Field& as) const {
    QT_CHECK(f.view.rank == as.view.rank && f.view.sizes == as.view.sizes, ShapeError,
             "{}: {} {} must have the shape of {} {}", op_, f.name, f.view.shape(), as.name, as.view.shape());
  }

  // An optional byte buffer.
  void scratch(const TensorView& view) const {
    if (view.defined()) dense({"scratch", view}, {-1}, {DType::u8});
  }

  void aligned16(const Field& f) const {
    QT_CHECK(is_aligned16(f.view.data), ShapeError, "{}: {} {} must begin at a multiple of 16 bytes", op_,
             f.name, f.view.shape());
  }

  void at_least(std::int64_t value, std::int64_t least, const char* what) const {
    QT_CHECK(value >= least, ShapeError, "{}: {} is {}, must be at least {}", op_, what, value, least);
  }

  void require(bool ok, std::string_view what) const { QT_CHECK(ok, ShapeError, "{}: {}", op_, what); }

  // No output shares a byte with another view. `in_place` names the pair that may be one and the same view.
  void separate(std::initializer_list<Field> outputs, std::initializer_list<Field> inputs,
                std::initializer_list<std::string_view> in_place = {}) const {
    for (const Field& out : outputs) {
      if (!out.view.defined()) continue;
      for (const Field& other : outputs) {
        if (&other != &out && other.view.defined()) disjoint(out, other);
      }
      for (const Field& in : inputs) {
        if (!in.view.defined()) continue;
        const bool may_be =
            std::find(in_place.begin(), in_place.end(), in.name) != in_place.end() && &out == outputs.begin();
        if (!(may_be && same_view(out.view, in.view))) disjoint(out, in);
      }
    }
  }

  void packed(const PackedView& w) const {
    w.check(op_, "w");
    common({"w.codes", w.codes}, {DType::u8});
    common({"w.absmax", w.absmax}, {format_info(w.format).scale_dtype});
  }

 private:
  void common(const Field& f, std::initializer_list<DType> dtypes) const {
    check_dtype(f.view, dtypes, op_, f.name);
    QT_CHECK(f.view.space == Space::device, ShapeError,
             "{}: {} {} lies in host memory; ops run on device memory", op_, f.name, f.view.shape());
  }

  void dense_rows(const Field& f) const {
    QT_CHECK(f.view.dense(), ShapeError, "{}: {} {} has rows {} elements apart, must be dense", op_, f.name,
             f.view.shape(), f.view.pitch);
  }

  void disjoint(const Field& a, const Field& b) const {
    QT_CHECK(!share_bytes(a.view, b.view), ShapeError, "{}: {} {} and {} {} share memory", op_, a.name,
             a.view.shape(), b.name, b.view.shape());
  }

  const char* op_;
};

}  // namespace qt

#include "src/train/stored_form.h"

#include <algorithm>
#include <cstring>

#include "quant/tensor_names.h"

namespace qt {

std::vector<NamedView> stored_weights(const ParamList& params) {
  std::vector<NamedView> list;
  for (const Param& p : params) {
    if (p.weight.is_packed()) {
      const PackedView& w = p.weight.packed;
      list.push_back({p.name, w.codes, w.codes_layout()});
      list.push_back({scales_of(p.name), w.absmax, w.absmax_layout()});
    } else {
      list.push_back({p.name, p.weight.dense});
    }
  }
  return list;
}

StoredForm::StoredForm(Backend& backend, std::span<const NamedView> views) : backend_(backend) {
  std::int64_t most = 0;
  for (const NamedView& v : views) most = std::max(most, v.layout.strip_elems * dtype_bytes(v.view.dtype));
  in_memory_.resize(static_cast<std::size_t>(most));
  in_file_.resize(static_cast<std::size_t>(most));
}

void StoredForm::read(const NamedView& v, std::span<std::byte> staging, const TakePiece& use) {
  if (!v.layout.as_in_files()) return read_strips(v, use);
  const std::int64_t elem_bytes = dtype_bytes(v.view.dtype);
  const std::int64_t piece_elems = static_cast<std::int64_t>(staging.size()) / elem_bytes;
  for (std::int64_t first = 0; first < v.view.elems(); first += piece_elems) {
    const std::int64_t count = std::min(piece_elems, v.view.elems() - first);
    const std::span<std::byte> piece = staging.first(static_cast<std::size_t>(count * elem_bytes));
    backend_.download(v.view.flat(first, count), piece);
    use(piece);
  }
}

void StoredForm::write(const NamedView& v, std::span<const std::byte> stored) {
  QT_CHECK(static_cast<std::int64_t>(stored.size()) == v.view.bytes(), ShapeError,
           "{} stored bytes for '{}', which has {}", stored.size(), v.name, v.view.bytes());
  if (v.layout.as_in_files()) return backend_.upload(stored, v.view.flat());
  write_strips(v, stored);
}

void StoredForm::read_strips(const NamedView& v, const TakePiece& use) {
  const std::int64_t n = v.layout.strip_elems;
  const auto bytes = static_cast<std::size_t>(n * dtype_bytes(v.view.dtype));
  const std::span<std::byte> in_memory = std::span(in_memory_).first(bytes),
                             in_file = std::span(in_file_).first(bytes);
  for (std::int64_t first = 0; first < v.view.elems(); first += n) {
    backend_.download(v.view.flat(first, n), in_memory);
    v.layout.to_files(in_memory, in_file);
    use(in_file);
  }
}

void StoredForm::write_strips(const NamedView& v, std::span<const std::byte> stored) {
  const std::int64_t n = v.layout.strip_elems;
  const auto bytes = static_cast<std::size_t>(n * dtype_bytes(v.view.dtype));
  const std::span<std::byte> in_memory = std::span(in_memory_).first(bytes),
                             in_file = std::span(in_file_).first(bytes);
  for (std::int64_t first = 0; first < v.view.elems(); first += n) {
    std::memcpy(in_file.data(), stored.data(), bytes);  // `stored` may begin where no element may
    stored = stored.subspan(bytes);
    v.layout.from_files(in_file, in_memory);
    backend_.upload(in_memory, v.view.flat(first, n));
  }
}

}  // namespace qt

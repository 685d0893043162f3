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
  std::size_t codes = 0, scales = 0;
  for (const NamedView& v : views) {
    std::size_t& most = v.view.dtype == DType::u8 ? codes : scales;
    most = std::max(most, static_cast<std::size_t>(v.layout.strip_elems));
  }
  codes_.in_memory.resize(codes);
  codes_.in_file.resize(codes);
  scales_.in_memory.resize(scales);
  scales_.in_file.resize(scales);
}

void StoredForm::read(const NamedView& v, std::span<std::byte> staging, const TakePiece& use) {
  if (!v.layout.as_in_files()) {
    if (v.view.dtype == DType::u8) return read_strips(v, codes_, use);
    return read_strips(v, scales_, use);
  }
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
  if (v.view.dtype == DType::u8) return write_strips(v, stored, codes_);
  write_strips(v, stored, scales_);
}

template <class T>
void StoredForm::read_strips(const NamedView& v, Strip<T>& strip, const TakePiece& use) {
  const std::int64_t n = v.layout.strip_elems;
  const std::span<T> in_memory = std::span(strip.in_memory).first(static_cast<std::size_t>(n)),
                     in_file = std::span(strip.in_file).first(in_memory.size());
  for (std::int64_t first = 0; first < v.view.elems(); first += n) {
    backend_.download(v.view.flat(first, n), std::as_writable_bytes(in_memory));
    v.layout.to_files(in_memory, in_file);
    use(std::as_bytes(in_file));
  }
}

template <class T>
void StoredForm::write_strips(const NamedView& v, std::span<const std::byte> stored, Strip<T>& strip) {
  const std::int64_t n = v.layout.strip_elems;
  const std::span<T> in_memory = std::span(strip.in_memory).first(static_cast<std::size_t>(n)),
                     in_file = std::span(strip.in_file).first(in_memory.size());
  for (std::int64_t first = 0; first < v.view.elems(); first += n) {
    std::memcpy(in_file.data(), stored.data(), in_file.size_bytes());
    stored = stored.subspan(in_file.size_bytes());
    v.layout.from_files(in_file, in_memory);
    backend_.upload(std::as_bytes(in_memory), v.view.flat(first, n));
  }
}

}  // namespace qt

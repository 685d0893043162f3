// StoredForm: the bytes of tensors as files have them, to and from a backend.
//
// A file has the layout of the format whatever a backend has: a checkpoint belongs to no backend, and equal
// weights have equal hashes. What a backend has in another order is therefore laid out anew on its way, strip by
// strip (quant/stored_layout.h): no second copy of a matrix is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "optim/optimizer.h"
#include "quant/param.h"

namespace qt {

// The compute copies of params, in their order.
std::vector<NamedView> stored_weights(const ParamList& params);

class StoredForm {
 public:
  // Takes what the longest strips among `views` need (in tiles 64 bytes for each column of the widest matrix) and
  // allocates nothing after that.
  StoredForm(Backend& backend, std::span<const NamedView> views);

  using TakePiece = std::function<void(std::span<const std::byte> piece)>;
  // Calls use(piece) for consecutive pieces of whole elements; a piece is valid during the call. What has no
  // strips passes through `staging`, which has room for an element at least and sizes the pieces.
  void read(const NamedView& v, std::span<std::byte> staging, const TakePiece& use);
  // stored: as many bytes as v has (ShapeError), at any address.
  void write(const NamedView& v, std::span<const std::byte> stored);

 private:
  void read_strips(const NamedView& v, const TakePiece& use);
  void write_strips(const NamedView& v, std::span<const std::byte> stored);

  Backend& backend_;
  std::vector<std::byte> in_memory_, in_file_;  // a strip in both orders
};

}  // namespace qt

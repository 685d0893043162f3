// Copies between the card and ordinary host memory, for machines that give no pinned memory of the size of a
// master copy. Host code.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include <cuda_runtime.h>

#include "kernels/cuda/runtime.h"

namespace qt::cuda {

// Two pinned pieces, one of which is filled or emptied by the processor while the other is under way.
class Staging {
 public:
  static constexpr std::size_t kPieceBytes = std::size_t{16} << 20;

  // Null when the system refuses even these.
  static std::unique_ptr<Staging> make();
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Behind earlier work of the stream. `from` has been read when the call returns; the copy may still be
  // under way.
  void to_device(void* to, const void* from, std::size_t bytes, cudaStream_t stream);
  // Behind earlier work of the stream, for which it waits: `to` holds the bytes when the call returns.
  void to_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

 private:
  struct Piece {
    std::byte* memory = nullptr;
    OwnedEvent free;  // the last copy out of it or into it is done
  };

  Staging() = default;
  Piece& next();

  std::array<Piece, 2> pieces_;
  std::size_t turn_ = 0;
};

}  // namespace qt::cuda

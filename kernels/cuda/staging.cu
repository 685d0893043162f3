#include <algorithm>
#include <cstring>

#include "kernels/cuda/staging.h"

namespace qt::cuda {

std::unique_ptr<Staging> Staging::make() {
  std::unique_ptr<Staging> staging(new Staging);
  for (Piece& piece : staging->pieces_) {
    void* memory = nullptr;
    if (!granted(cudaHostAlloc(&memory, kPieceBytes, cudaHostAllocDefault), "cudaHostAlloc")) return nullptr;
    piece.memory = static_cast<std::byte*>(memory);
    piece.free = make_event();
  }
  return staging;
}

Staging::~Staging() {
  for (const Piece& piece : pieces_) {
    if (piece.memory != nullptr) cudaFreeHost(piece.memory);  // make() may have got none
  }
}

// The next piece in turn, once nothing is under way in it.
Staging::Piece& Staging::next() {
  Piece& piece = pieces_[turn_++ % pieces_.size()];
  check(cudaEventSynchronize(piece.free.get()), "cudaEventSynchronize");
  return piece;
}

void Staging::to_device(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  for (std::size_t at = 0; at < bytes; at += kPieceBytes) {
    const std::size_t count = std::min(kPieceBytes, bytes - at);
    Piece& piece = next();
    std::memcpy(piece.memory, static_cast<const std::byte*>(from) + at, count);
    check(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, piece.memory, count, cudaMemcpyHostToDevice,
                          stream),
          "cudaMemcpyAsync");
    check(cudaEventRecord(piece.free.get(), stream), "cudaEventRecord");
  }
}

void Staging::to_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  struct Arriving {
    Piece* piece = nullptr;
    std::size_t at = 0, count = 0;
  } arriving;
  const auto empty = [&] {
    if (arriving.piece == nullptr) return;
    check(cudaEventSynchronize(arriving.piece->free.get()), "cudaEventSynchronize");
    std::memcpy(static_cast<std::byte*>(to) + arriving.at, arriving.piece->memory, arriving.count);
  };
  for (std::size_t at = 0; at < bytes; at += kPieceBytes) {
    const std::size_t count = std::min(kPieceBytes, bytes - at);
    Piece& piece = next();
    check(cudaMemcpyAsync(piece.memory, static_cast<const std::byte*>(from) + at, count,
                          cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
    check(cudaEventRecord(piece.free.get(), stream), "cudaEventRecord");
    empty();  // the one before, while this one is under way
    arriving = {&piece, at, count};
  }
  empty();
}

}  // namespace qt::cuda

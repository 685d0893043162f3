// The host's half of kernels/cuda/launch.cuh: the same names, with every access to shared memory checked, and
// the alignment of wide ones to global memory.
#pragma once

#include <cstring>
#include <tuple>

#include <cuda_runtime.h>

#include "kernels/sim/block.h"
#include "kernels/sim/stream.h"
#include "kernels/sim/where.h"

namespace qt::cuda {

template <class V>
V read_global(const void* p, const sim::Where where = sim::Where::current()) {
  sim::check_aligned(p, sizeof(V), "read", where);
  V value;
  std::memcpy(&value, p, sizeof(V));
  return value;
}
template <class V>
void write_global(void* p, V value, const sim::Where where = sim::Where::current()) {
  sim::check_aligned(p, sizeof(V), "write", where);
  std::memcpy(p, &value, sizeof(V));
}

template <class T>
class SharedArray {
 public:
  SharedArray(std::int64_t begin, std::int64_t count)
      : begin_(begin), end_(begin + count * static_cast<std::int64_t>(sizeof(T))) {
    static_assert(sizeof(T) >= 2, "the simulator watches shared memory in units of two bytes");
  }

  T read(int i, const sim::Where where = sim::Where::current()) const { return read_as<T>(i, where); }
  void write(int i, T value, const sim::Where where = sim::Where::current()) const {
    write_as<T>(i, value, where);
  }
  template <class V>
  V read_as(int i, const sim::Where where = sim::Where::current()) const {
    V value;
    std::memcpy(&value, sim::shared_memory().read(span(i, sizeof(V)), sim::this_access(), where), sizeof(V));
    sim::note_bank_access(span(i, sizeof(V)).offset, sizeof(V), where);
    return value;
  }
  template <class V>
  void write_as(int i, V value, const sim::Where where = sim::Where::current()) const {
    std::memcpy(sim::shared_memory().write(span(i, sizeof(V)), sim::this_access(), where), &value, sizeof(V));
    sim::note_bank_access(span(i, sizeof(V)).offset, sizeof(V), where);
  }
  SharedArray part(int first, int count, const sim::Where where = sim::Where::current()) const {
    const std::int64_t begin = begin_ + first * static_cast<std::int64_t>(sizeof(T));
    if (first < 0 || begin + count * static_cast<std::int64_t>(sizeof(T)) > end_) {
      throw sim::SimError("part beyond its shared array at " + sim::place(where));
    }
    return SharedArray(begin, count);
  }

  // Bytes [i, i + bytes) of the array, for the shadow.
  sim::SharedShadow::Span span(int i, std::size_t bytes) const {
    return {.offset = begin_ + i * static_cast<std::int64_t>(sizeof(T)),
            .size = static_cast<int>(bytes),
            .begin = begin_,
            .end = end_};
  }

 private:
  std::int64_t begin_, end_;  // in the block's shared memory, bytes
};

class SharedMemory {
 public:
  template <class T>
  SharedArray<T> take(int count, const sim::Where where = sim::Where::current()) {
    const std::int64_t begin = used_bytes_;
    used_bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 127) / 128 * 128;
    if (used_bytes_ > sim::shared_memory().bytes()) {
      throw sim::SimError("more shared memory is taken at " + sim::place(where) + " than was launched with");
    }
    return SharedArray<T>(begin, count);
  }

 private:
  std::int64_t used_bytes_ = 0;
};

template <class... Params, class... Args>
void launch(const LaunchShape& shape, void (*kernel)(Params...), Args... args) {
  if (!prepare_launch(shape, reinterpret_cast<const void*>(kernel))) return;
  sim::Grid grid{.kernel = shape.name,
                 .blocks = {static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.blocks_y),
                            static_cast<unsigned>(shape.blocks_z)},
                 .threads = shape.threads,
                 .shared_bytes = shape.shared_bytes};
  // Arguments are copied now, as on a card.
  sim::enqueue_launch(shape.stream, grid.kernel,
                      [grid, kernel, values = std::tuple<Params...>(static_cast<Params>(args)...)] {
                        sim::run_grid(grid, [&] { std::apply(kernel, values); });
                      });
  after_launch(shape.name, shape.stream);
}

}  // namespace qt::cuda

// FixedBuffers: hands out the first elements of buffers that were planned once, by name.
//
// For work such as decoding: its shapes change from call to call, and its memory must not. An Arena replays
// one sequence of requests and would refuse.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "src/memory/arena.h"

namespace qt {

class FixedBuffers final : public BufferSource {
 public:
  // `buffer` serves requests under these names, always from its first element on: names that share a buffer
  // stand for values that are never needed together. The names must outlive the object.
  void add(Buffer buffer, std::initializer_list<std::string_view> names);

  // Requests tagged as scratch share one buffer, whatever their names. Until there is one they get an address
  // that cannot be read, for a backend that only counts, and scratch_bytes() is the largest of them.
  void set_scratch(Buffer scratch) { scratch_ = std::move(scratch); }
  std::int64_t scratch_bytes() const { return scratch_bytes_; }

  // Throws PlanError for a name that no buffer serves, and where the buffer is too small or has another dtype.
  Buffer alloc(std::string_view name, MemoryTag tag, DType dtype,
               std::initializer_list<std::int64_t> shape) override;

 private:
  std::vector<Buffer> buffers_;
  std::vector<std::pair<std::string_view, std::size_t>> names_;  // and the place in buffers_
  Buffer scratch_;
  std::int64_t scratch_bytes_ = 0;
};

}  // namespace qt

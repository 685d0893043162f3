// XXH3-128 as a stream. It finds damage (flipped bits, torn and zero-filled files); it is no defence against
// somebody who rewrites file and hash together, so the readers check every field all the same.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

struct XXH3_state_s;

namespace qt {

class Xxh3 {
 public:
  static constexpr std::size_t kHexChars = 32;

  Xxh3();
  void update(std::span<const std::byte> bytes);
  // The hash of everything so far, as 32 lower-case hex digits (canonical, most significant byte first: what
  // `xxhsum -H2` prints). More may follow.
  std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::string xxh3_hex(std::span<const std::byte> bytes);

}  // namespace qt

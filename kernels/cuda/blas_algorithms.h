// What Blas remembers: kinds of products, the algorithm of each as opaque bytes, and both as text. Host code,
// the same for the library and for its twin.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/blas.h"

namespace qt::cuda {

// Everything that the choice of an algorithm may depend on.
struct BlasKind {
  std::int64_t M = 0, N = 0, R = 0;
  DType operands = DType::f32, result = DType::f32;
  std::int64_t a_pitch = 0, b_pitch = 0, c_pitch = 0;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  std::int64_t a_align_bytes = 0, b_align_bytes = 0, c_align_bytes = 0;  // powers of two, 256 at most

  auto operator<=>(const BlasKind&) const = default;
};

BlasKind kind_of(const BlasProduct& product);
std::string text_of(const BlasKind& kind);  // one line, for files
// For messages: "bf16 [4096, 2048] x [2048, 2048]^T into f32, accumulated".
std::string describe(const BlasKind& kind);
// Nothing for a text that text_of() does not write.
std::optional<BlasKind> kind_from(std::string_view text);

using AlgorithmBytes = std::vector<std::uint8_t>;

// `library` names library, version and card: bytes mean the same where it is the same.
std::string algorithms_text(std::string_view library, const std::map<BlasKind, AlgorithmBytes>& chosen);

// Calls take(kind, bytes) for each entry; it returns why the entry does not fit, or an empty text. Returns
// those reasons, and what could not be read.
using TakeAlgorithm = std::function<std::string(const BlasKind&, const AlgorithmBytes&)>;
std::vector<std::string> read_algorithms(std::string_view library, std::string_view text,
                                         const TakeAlgorithm& take);

}  // namespace qt::cuda

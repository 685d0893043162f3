#include <array>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/cuda/blas_algorithms.h"

namespace qt::cuda {

namespace {

constexpr int kFields = 14;

// The fields in the order of the text.
std::array<std::int64_t, kFields> fields_of(const BlasKind& k) {
  return {k.M,
          k.N,
          k.R,
          static_cast<std::int64_t>(k.operands),
          static_cast<std::int64_t>(k.result),
          k.a_pitch,
          k.b_pitch,
          k.c_pitch,
          k.a_transposed,
          k.b_transposed,
          k.accumulate,
          k.a_align_bytes,
          k.b_align_bytes,
          k.c_align_bytes};
}

std::string_view take_until(std::string_view& text, char end) {
  const std::size_t at = text.find(end);
  const std::string_view head = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return head;
}

template <class T>
bool parse(std::string_view text, int base, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool is_float(std::int64_t dtype) {
  return dtype == static_cast<std::int64_t>(DType::f32) || dtype == static_cast<std::int64_t>(DType::bf16) ||
         dtype == static_cast<std::int64_t>(DType::f16);
}

std::int64_t alignment_of(const void* data) {
  constexpr std::uintptr_t kMost = 256;
  const auto address = reinterpret_cast<std::uintptr_t>(data) | kMost;
  return static_cast<std::int64_t>(address & (~address + 1));
}

}  // namespace

BlasKind kind_of(const BlasProduct& p) {
  return {.M = p.M,
          .N = p.N,
          .R = p.R,
          .operands = p.operands,
          .result = p.result,
          .a_pitch = p.a_pitch,
          .b_pitch = p.b_pitch,
          .c_pitch = p.c_pitch,
          .a_transposed = p.a_transposed,
          .b_transposed = p.b_transposed,
          .accumulate = p.accumulate,
          .a_align_bytes = alignment_of(p.a),
          .b_align_bytes = alignment_of(p.b),
          .c_align_bytes = alignment_of(p.c)};
}

std::string text_of(const BlasKind& kind) { return fmt::format("{}", fmt::join(fields_of(kind), " ")); }

std::string describe(const BlasKind& k) {
  const auto operand = [](std::int64_t rows, std::int64_t cols, bool transposed) {
    return transposed ? fmt::format("[{}, {}]^T", cols, rows) : fmt::format("[{}, {}]", rows, cols);
  };
  return fmt::format("{} {} x {} into {}{}", dtype_name(k.operands), operand(k.M, k.R, k.a_transposed),
                     operand(k.R, k.N, k.b_transposed), dtype_name(k.result),
                     k.accumulate ? ", accumulated" : "");
}

std::optional<BlasKind> kind_from(std::string_view text) {
  std::array<std::int64_t, kFields> f{};
  for (std::int64_t& field : f) {
    if (!parse(take_until(text, ' '), 10, field) || field < 0) return std::nullopt;
  }
  if (!text.empty() || !is_float(f[3]) || !is_float(f[4])) return std::nullopt;
  for (const int flag : {8, 9, 10}) {
    if (f[static_cast<std::size_t>(flag)] > 1) return std::nullopt;
  }
  return BlasKind{.M = f[0],
                  .N = f[1],
                  .R = f[2],
                  .operands = static_cast<DType>(f[3]),
                  .result = static_cast<DType>(f[4]),
                  .a_pitch = f[5],
                  .b_pitch = f[6],
                  .c_pitch = f[7],
                  .a_transposed = f[8] == 1,
                  .b_transposed = f[9] == 1,
                  .accumulate = f[10] == 1,
                  .a_align_bytes = f[11],
                  .b_align_bytes = f[12],
                  .c_align_bytes = f[13]};
}

std::string algorithms_text(std::string_view library, const std::map<BlasKind, AlgorithmBytes>& chosen) {
  std::string text = fmt::format("{}\n", library);
  for (const auto& [kind, bytes] : chosen)
    text += fmt::format("{}: {:02x}\n", text_of(kind), fmt::join(bytes, ""));
  return text;
}

std::vector<std::string> read_algorithms(std::string_view library, std::string_view text,
                                         const TakeAlgorithm& take) {
  if (text.empty()) return {};
  const std::string_view of = take_until(text, '\n');
  if (of != library)
    return {
        fmt::format("the algorithms of matrix products are those of '{}', and this is '{}'", of, library)};
  std::vector<std::string> left_out;
  while (!text.empty()) {
    std::string_view bytes_text = take_until(text, '\n');
    const std::string_view kind_text = take_until(bytes_text, ':');
    const std::optional<BlasKind> kind = kind_from(kind_text);
    AlgorithmBytes bytes;
    bool readable = kind.has_value() && bytes_text.size() % 2 == 1 && bytes_text[0] == ' ';
    for (std::size_t i = 1; readable && i < bytes_text.size(); i += 2)
      readable = parse(bytes_text.substr(i, 2), 16, bytes.emplace_back());
    const std::string reason = readable ? take(*kind, bytes) : "it cannot be read";
    if (!reason.empty())
      left_out.push_back(fmt::format("the algorithm of the matrix product {}: {}",
                                     kind ? describe(*kind) : fmt::format("'{}'", kind_text), reason));
  }
  return left_out;
}

}  // namespace qt::cuda

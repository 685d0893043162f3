#include "kernels/sim/shared_memory.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

namespace qt::sim {

namespace {

constexpr std::int64_t kCapacityBytes = 256 * 1024;

std::string name_of(std::uint16_t thread) {
  if (thread == AccessBy::kManyWarps) return "threads of several warps";
  if (thread >= AccessBy::kWholeWarp) return fmt::format("warp {}", thread - AccessBy::kWholeWarp);
  return fmt::format("thread {}", thread);
}

// Is an earlier access of `other` at `stamp` ordered before `by`?
bool ordered(std::uint16_t other, std::uint32_t stamp, const AccessBy& by) {
  if (stamp < by.block_since) return true;
  if (other == by.thread && other < AccessBy::kWholeWarp) return true;
  if (other == AccessBy::kManyWarps) return false;
  const int warp = other >= AccessBy::kWholeWarp ? other - AccessBy::kWholeWarp : other / 32;
  return warp == by.warp && stamp < by.warp_since;
}

}  // namespace

std::string place(const Where& where) {
  const std::string_view file = where.file_name();
  return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), where.line());
}

void check_aligned(const void* p, std::size_t bytes, const char* what, const Where& where) {
  const std::size_t beyond = reinterpret_cast<std::uintptr_t>(p) % bytes;
  if (beyond == 0) return;
  throw SimError(
      fmt::format("misaligned {} of global memory at {}: {} bytes at an address {} beyond a multiple", what,
                  place(where), bytes, beyond));
}

SharedShadow::SharedShadow() : data_(kCapacityBytes), units_(kCapacityBytes / kUnitBytes) {}

void SharedShadow::reset(std::int64_t bytes) {
  if (bytes > kCapacityBytes) throw SimError(fmt::format("{} bytes of shared memory are too many", bytes));
  bytes_ = bytes;
  std::fill_n(data_.begin(), bytes, std::byte{0xFF});
  std::fill_n(units_.begin(), (bytes + kUnitBytes - 1) / kUnitBytes, Unit{});
}

void SharedShadow::check_span(const Span& span, const char* what, const Where& where) const {
  if (span.offset < span.begin || span.offset + span.size > span.end) {
    throw SimError(fmt::format("{} out of bounds at {}: bytes {} to {} of a shared array of {}", what,
                               place(where), span.offset - span.begin, span.offset - span.begin + span.size,
                               span.end - span.begin));
  }
  if (span.offset % span.size != 0) {
    throw SimError(fmt::format("misaligned {} at {}: {} bytes at offset {}", what, place(where), span.size,
                               span.offset));
  }
}

const std::byte* SharedShadow::read(const Span& span, const AccessBy& by, const Where& where) {
  check_span(span, "read", where);
  for (std::int64_t u = span.offset / kUnitBytes; u < (span.offset + span.size) / kUnitBytes; ++u) {
    Unit& unit = units_[static_cast<std::size_t>(u)];
    if (unit.pending) {
      throw SimError(fmt::format("read at {} of a cp.async that has not been waited for", place(where)));
    }
    if (!unit.valid)
      throw SimError(fmt::format("read at {} of shared memory that no thread wrote", place(where)));
    if (!ordered(unit.writer, unit.write_stamp, by)) {
      throw SimError(fmt::format("race at {}: {} reads what {} wrote, with no barrier between", place(where),
                                 name_of(by.thread), name_of(unit.writer)));
    }
    // Who writes after this read also writes after the reads that are ordered before it.
    if (!unit.read_once || ordered(unit.reader, unit.read_stamp, by)) {
      unit.reader = by.thread;
    } else if (unit.reader != by.thread) {
      const std::uint16_t warp_of_reader =
          unit.reader >= AccessBy::kWholeWarp ? static_cast<std::uint16_t>(unit.reader - AccessBy::kWholeWarp)
                                              : static_cast<std::uint16_t>(unit.reader / 32);
      unit.reader = unit.reader == AccessBy::kManyWarps || warp_of_reader != by.warp
                        ? AccessBy::kManyWarps
                        : static_cast<std::uint16_t>(AccessBy::kWholeWarp + by.warp);
    }
    unit.read_once = true;
    unit.read_stamp = by.now;
  }
  return data_.data() + span.offset;
}

void SharedShadow::check_write(Unit& unit, const AccessBy& by, const Where& where) const {
  if (unit.pending) {
    throw SimError(fmt::format("write at {} into a cp.async that has not been waited for", place(where)));
  }
  if (unit.valid && !ordered(unit.writer, unit.write_stamp, by)) {
    throw SimError(fmt::format("race at {}: {} overwrites what {} wrote, with no barrier between",
                               place(where), name_of(by.thread), name_of(unit.writer)));
  }
  if (unit.read_once && !ordered(unit.reader, unit.read_stamp, by)) {
    throw SimError(fmt::format("race at {}: {} overwrites what {} read, with no barrier between",
                               place(where), name_of(by.thread), name_of(unit.reader)));
  }
}

std::byte* SharedShadow::write(const Span& span, const AccessBy& by, const Where& where) {
  check_span(span, "write", where);
  for (std::int64_t u = span.offset / kUnitBytes; u < (span.offset + span.size) / kUnitBytes; ++u) {
    Unit& unit = units_[static_cast<std::size_t>(u)];
    check_write(unit, by, where);
    unit.valid = true;
    unit.writer = by.thread;
    unit.write_stamp = by.now;
    unit.read_once = false;
  }
  return data_.data() + span.offset;
}

void SharedShadow::poison(const Span& span, const AccessBy& by, const Where& where) {
  check_span(span, "cp.async", where);
  for (std::int64_t u = span.offset / kUnitBytes; u < (span.offset + span.size) / kUnitBytes; ++u) {
    Unit& unit = units_[static_cast<std::size_t>(u)];
    check_write(unit, by, where);
    unit.pending = true;
    unit.valid = false;
  }
  std::fill_n(data_.begin() + span.offset, span.size, std::byte{0xFF});
}

void SharedShadow::land(const Span& span, const std::byte* from, const AccessBy& by) {
  for (std::int64_t u = span.offset / kUnitBytes; u < (span.offset + span.size) / kUnitBytes; ++u) {
    Unit& unit = units_[static_cast<std::size_t>(u)];
    unit.pending = false;
    unit.valid = true;
    unit.writer = by.thread;
    unit.write_stamp = by.now;
    unit.read_once = false;
  }
  if (from == nullptr) {
    std::fill_n(data_.begin() + span.offset, span.size, std::byte{0});
  } else {
    std::memcpy(data_.data() + span.offset, from, static_cast<std::size_t>(span.size));
  }
}

}  // namespace qt::sim

// TensorBoard event files: scalars over steps, in the records that TensorBoard reads. Which scalars a run
// has, and what else is written of it, is src/train/run_log_writer.h.
//
// A file is a row of records, each of them
//   length   8 bytes, little-endian
//   check    4 bytes: masked CRC-32C of the length
//   event    `length` bytes: a protocol buffer
//   check    4 bytes: masked CRC-32C of the event
// and the first event names the version, "brain.Event:2".
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace qt {

struct Scalar {
  const char* tag;  // "train/loss"
  double value;     // stored as f32
};

// CRC-32C (Castagnoli) of the bytes, rotated and shifted as these files keep it.
std::uint32_t masked_crc32c(std::string_view bytes);

// One session's file in a folder that other sessions have files in. Its name sorts behind theirs, whatever
// the clock says, because that is the order in which they are read.
//
// These files are a convenience: a disk that is full or a folder that cannot be written stops no run. The
// record that did not fit is taken back, one warning says so, and the next one is tried again. Not for
// several threads at once.
class EventFile {
 public:
  // Makes nothing: folder and file come with the first event. `first_step`: what earlier sessions wrote from
  // this step on was lost with them, and is no longer shown.
  EventFile(std::filesystem::path folder, std::int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  // One event with all the scalars. Nothing where there are none.
  void write(double wall_time_s, std::int64_t step, std::span<const Scalar> scalars);
  // What was written from `step` on is done again.
  void go_back_to(std::int64_t step) { restart_step_ = step; }

  // Empty before the first event.
  const std::filesystem::path& path() const { return path_; }

 private:
  bool open(double wall_time_s);
  void warn(std::string_view operation, int reason);

  std::filesystem::path folder_, path_;
  int file_ = -1;
  std::int64_t whole_bytes_ = 0;   // of records that are complete
  std::int64_t restart_step_ = 0;  // still to be said; negative: nothing
  bool warned_ = false;
};

}  // namespace qt

#include "src/train/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

#include "src/core/log.h"

namespace qt {

namespace {

constexpr std::string_view kNamePrefix = "events.out.tfevents.";

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
    table[i] = crc;
  }
  return table;
}

// --- protocol buffers: a field is its number and how it is stored, then the value -------------------------

enum Wire : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void append_little_endian(std::string& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
}

void append_key(std::string& out, std::uint32_t field, Wire wire) { append_varint(out, field << 3 | wire); }

void append_bytes(std::string& out, std::uint32_t field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out += bytes;
}

// message Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
//                 SessionLog session_log = 7; }
enum EventField : std::uint32_t { kFileVersion = 3, kSummary = 5, kSessionLog = 7 };

std::string event_text(double wall_time_s, std::int64_t step, EventField field, std::string_view content) {
  std::string event;
  append_key(event, 1, kFixed64);
  append_little_endian(event, std::bit_cast<std::uint64_t>(wall_time_s), 8);
  append_key(event, 2, kVarint);
  append_varint(event, static_cast<std::uint64_t>(step));
  append_bytes(event, field, content);
  return event;
}

// message Summary { repeated Value value = 1; }  message Value { string tag = 1; float simple_value = 2; }
std::string summary_text(std::span<const Scalar> scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    std::string value;
    append_bytes(value, 1, scalar.tag);
    append_key(value, 2, kFixed32);
    append_little_endian(value, std::bit_cast<std::uint32_t>(static_cast<float>(scalar.value)), 4);
    append_bytes(summary, 1, value);
  }
  return summary;
}

// message SessionLog { enum SessionStatus { START = 1; } SessionStatus status = 1; }: readers then drop what
// they hold of this step and later ones.
std::string session_start_text() {
  std::string session;
  append_key(session, 1, kVarint);
  append_varint(session, 1);
  return session;
}

void append_record(std::string& out, std::string_view event) {
  std::string length;
  append_little_endian(length, event.size(), 8);
  out += length;
  append_little_endian(out, masked_crc32c(length), 4);
  out += event;
  append_little_endian(out, masked_crc32c(event), 4);
}

// The number behind the prefix of a file's name: when the session began, in seconds.
std::optional<std::int64_t> number_in_name(const std::string& name) {
  if (!name.starts_with(kNamePrefix)) return std::nullopt;
  std::int64_t number = 0;
  int digits = 0;
  for (std::size_t i = kNamePrefix.size(); i < name.size() && name[i] >= '0' && name[i] <= '9'; ++i) {
    if (++digits > 10) return std::nullopt;  // not of our making
    number = number * 10 + (name[i] - '0');
  }
  return digits > 0 ? std::optional(number) : std::nullopt;
}

}  // namespace

std::uint32_t masked_crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> kTable = crc_table();
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ (crc >> 8);
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

EventFile::EventFile(std::filesystem::path folder, std::int64_t first_step)
    : folder_(std::move(folder)), restart_step_(first_step) {}

EventFile::~EventFile() {
  if (file_ >= 0) ::close(file_);
}

void EventFile::warn(std::string_view operation, int reason) {
  if (warned_) return;
  warned_ = true;
  log_warning("{}: {} failed: {}; training goes on, TensorBoard will lack these steps",
              (path_.empty() ? folder_ : path_).string(), operation, std::strerror(reason));
}

bool EventFile::open(double wall_time_s) {
  if (file_ >= 0) return true;
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) {
    warn("making the folder", error.value());
    return false;
  }
  std::int64_t number = std::clamp<std::int64_t>(static_cast<std::int64_t>(wall_time_s), 0, 9'999'999'999);
  std::filesystem::directory_iterator entries(folder_, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    if (const auto taken = number_in_name(entries->path().filename().string()))
      number = std::max(number, *taken + 1);
  }
  const std::filesystem::path path =
      folder_ / fmt::format("{}{:010}.{}.qtrain", kNamePrefix, number, ::getpid());
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file_ < 0) {
    warn("opening a file in it", errno);
    return false;
  }
  path_ = path;
  return true;
}

void EventFile::write(double wall_time_s, std::int64_t step, std::span<const Scalar> scalars) {
  if (scalars.empty() || !open(wall_time_s)) return;
  std::string records;
  if (whole_bytes_ == 0) append_record(records, event_text(wall_time_s, 0, kFileVersion, "brain.Event:2"));
  if (restart_step_ >= 0)
    append_record(records, event_text(wall_time_s, restart_step_, kSessionLog, session_start_text()));
  append_record(records, event_text(wall_time_s, step, kSummary, summary_text(scalars)));

  std::size_t done = 0;
  while (done < records.size()) {
    const ssize_t n = ::pwrite(file_, records.data() + done, records.size() - done,
                               whole_bytes_ + static_cast<std::int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      warn("writing", n < 0 ? errno : EIO);
      // Half a record would hide all that follow it. Where even this fails, the next write covers it.
      if (::ftruncate(file_, whole_bytes_) != 0) warn("taking half a record back", errno);
      return;
    }
    done += static_cast<std::size_t>(n);
  }
  whole_bytes_ += static_cast<std::int64_t>(records.size());
  restart_step_ = -1;
  warned_ = false;
}

}  // namespace qt

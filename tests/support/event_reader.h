// TensorBoard event files, read as their format is published and without the code that writes them: checks
// bit by bit, protocol buffers by walking over fields.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qt::test {

struct ReadEvent {
  double wall_time = 0;
  std::int64_t step = 0;
  std::string file_version;
  bool session_start = false;
  std::vector<std::pair<std::string, float>> scalars;
};

struct ReadEvents {
  std::vector<ReadEvent> events;
  bool torn = false;  // the file ends inside a record
};

inline std::uint32_t crc32c_bit_by_bit(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      const bool one = ((crc ^ (static_cast<unsigned char>(c) >> bit)) & 1) != 0;
      crc = (crc >> 1) ^ (one ? 0x82F63B78 : 0);
    }
  }
  return crc ^ 0xFFFFFFFF;
}

class EventReader {
 public:
  // Throws std::runtime_error for a check that fails and for fields that end too early.
  static ReadEvents read(std::string_view file) {
    ReadEvents all;
    while (!file.empty()) {
      if (file.size() < 12) return torn(all);
      const std::uint64_t length = number(file.substr(0, 8));
      require_check(file.substr(0, 8), file.substr(8, 4));
      if (file.size() < 12 + length + 4) return torn(all);
      const std::string_view data = file.substr(12, length);
      require_check(data, file.substr(12 + length, 4));
      all.events.push_back(event(data));
      file.remove_prefix(12 + length + 4);
    }
    return all;
  }

  // Tag to step to value, as TensorBoard shows several files of a folder one after the other: where a session
  // starts at a step, what was there from it on is gone.
  static std::map<std::string, std::map<std::int64_t, float>> shown(const std::vector<std::string>& files) {
    std::map<std::string, std::map<std::int64_t, float>> curves;
    for (const std::string& file : files) {
      for (const ReadEvent& e : read(file).events) {
        if (e.session_start) {
          for (auto& [tag, curve] : curves) curve.erase(curve.lower_bound(e.step), curve.end());
        }
        for (const auto& [tag, value] : e.scalars) curves[tag][e.step] = value;
      }
    }
    return curves;
  }

 private:
  static ReadEvents torn(ReadEvents all) {
    all.torn = true;
    return all;
  }
  static std::uint64_t number(std::string_view little_endian) {
    std::uint64_t value = 0;
    for (std::size_t i = little_endian.size(); i-- > 0;)
      value = value << 8 | static_cast<unsigned char>(little_endian[i]);
    return value;
  }
  static void require_check(std::string_view data, std::string_view check) {
    const std::uint32_t masked = static_cast<std::uint32_t>(number(check)) - 0xA282EAD8;
    const std::uint32_t crc = masked >> 17 | masked << 15;
    if (crc != crc32c_bit_by_bit(data)) throw std::runtime_error("a check differs");
  }
  static std::string_view take(std::string_view& data, std::size_t bytes) {
    if (data.size() < bytes) throw std::runtime_error("a field ends too early");
    const std::string_view taken = data.substr(0, bytes);
    data.remove_prefix(bytes);
    return taken;
  }
  static std::uint64_t varint(std::string_view& data) {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(data, 1)[0]);
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw std::runtime_error("a number has no end");
  }

  struct Field {
    std::uint64_t number = 0;
    std::uint64_t value = 0;  // of numbers of all sizes
    std::string_view bytes;
  };
  static std::vector<Field> fields(std::string_view data) {
    std::vector<Field> all;
    while (!data.empty()) {
      const std::uint64_t key = varint(data);
      Field f{.number = key >> 3, .value = 0, .bytes = {}};
      switch (key & 7) {
        case 0: f.value = varint(data); break;
        case 1: f.value = number(take(data, 8)); break;
        case 2: f.bytes = take(data, varint(data)); break;
        case 5: f.value = number(take(data, 4)); break;
        default: throw std::runtime_error("a field of no known kind");
      }
      all.push_back(f);
    }
    return all;
  }
  static std::pair<std::string, float> scalar(std::string_view data) {
    std::pair<std::string, float> result{"", 0.0f};
    for (const Field& f : fields(data)) {
      if (f.number == 1) result.first = f.bytes;
      const auto bits = static_cast<std::uint32_t>(f.value);
      if (f.number == 2) std::memcpy(&result.second, &bits, sizeof bits);
    }
    return result;
  }
  static ReadEvent event(std::string_view data) {
    ReadEvent e;
    for (const Field& f : fields(data)) {
      if (f.number == 1) std::memcpy(&e.wall_time, &f.value, sizeof f.value);
      if (f.number == 2) e.step = static_cast<std::int64_t>(f.value);
      if (f.number == 3) e.file_version = f.bytes;
      if (f.number == 5) {
        for (const Field& value : fields(f.bytes)) {
          if (value.number == 1) e.scalars.push_back(scalar(value.bytes));
        }
      }
      if (f.number == 7) {
        for (const Field& status : fields(f.bytes))
          e.session_start |= status.number == 1 && status.value == 1;
      }
    }
    return e;
  }
};

}  // namespace qt::test

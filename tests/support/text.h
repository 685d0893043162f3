// Texts and errors for the tests of src/data.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace qt {

// An optional input from beside the repository; empty when it is absent.
inline std::string shared_file(const char* name) {
  std::ifstream in(std::filesystem::path(QTRAIN_SOURCE_DIR) / "../shared/data" / name, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  return text.str();
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// An empty folder that goes away with everything in it.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "qtrain_test_XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make a temporary folder");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// What `call` throws, as "message | hint"; empty when it does not throw Kind.
template <class Kind, class Call>
std::string thrown(Call&& call) {
  try {
    call();
  } catch (const Kind& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return {};
}

// Letters that make many merges, white space of all kinds, digits, marks, CJK, emoji and broken UTF-8.
inline std::string random_text(std::mt19937_64& rng, std::size_t parts) {
  static const std::vector<std::string> alphabet = {"a",
                                                    "b",
                                                    "ab",
                                                    "the",
                                                    "'s",
                                                    "'LL",
                                                    "'",
                                                    " ",
                                                    " ",
                                                    "  ",
                                                    "\n",
                                                    "\r\n",
                                                    "\t",
                                                    "1",
                                                    "23",
                                                    "2024",
                                                    ".",
                                                    ",",
                                                    "!?",
                                                    "-",
                                                    "\xC3\xA9",
                                                    "\xE4\xBD\xA0",
                                                    "\xF0\x9F\x98\x80",
                                                    "\xC2\xA0",
                                                    "\xE3\x80\x80",
                                                    "\xE1\xA0\x8E",
                                                    "\xCC\x81",
                                                    "\xFF",
                                                    "\xC3",
                                                    "\xE4\xBD",
                                                    "\xED\xA0\x80",
                                                    "\xC0\x80",
                                                    std::string(1, '\0')};
  std::string text;
  for (std::size_t i = 0; i < parts; ++i) text += alphabet[rng() % alphabet.size()];
  return text;
}

}  // namespace qt

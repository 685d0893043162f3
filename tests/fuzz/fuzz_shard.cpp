// Any bytes as a token shard, with and without a side file that matches them. The first byte chooses; the
// second gives the vocabulary. Reading must end in tokens inside the vocabulary or in a DataError.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "src/core/error.h"
#include "src/data/shard.h"
#include "src/io/hash.h"

namespace {

std::filesystem::path temporary(const char* name) {
  return std::filesystem::temp_directory_path() / fmt::format("qtrain_fuzz_{}_{}.bin", name, ::getpid());
}

void write(const std::filesystem::path& to, std::string_view bytes) {
  std::ofstream(to, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void read(const std::filesystem::path& path, std::int64_t vocab_size) {
  try {
    const qt::ShardReader reader(path, vocab_size);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(reader.tokens()));
    reader.copy(0, ids);
    for (const std::int32_t id : ids) {
      if (id < 0 || id >= vocab_size) std::abort();
    }
  } catch (const qt::DataError&) {
    // The only way to refuse.
  }
}

// A shard that is sound, written once; its side file is what changes.
const std::filesystem::path& sound_shard() {
  static const std::filesystem::path path = [] {
    qt::ShardWriter writer(temporary("sound"), 258, std::string(32, 'a'));
    writer.append(std::vector<std::int32_t>(10, 0));
    writer.finish(qt::posix_fs(), 10);
    return temporary("sound");
  }();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  if (bytes < 2) return 0;
  const std::int64_t vocab_size = 1 + 257 * static_cast<std::int64_t>(data[1]);
  const std::string_view content(reinterpret_cast<const char*>(data) + 2, bytes - 2);
  if (data[0] % 3 == 1) {  // the input is the side file
    write(qt::shard_side_path(sound_shard()), content);
    read(sound_shard(), vocab_size);
    return 0;
  }
  static const std::filesystem::path path = temporary("shard");
  const auto side = qt::shard_side_path(path);
  std::filesystem::remove(side);
  write(path, content);
  if (data[0] % 3 == 2) {  // a side file with a right checksum, so that the checks behind it are reached
    write(
        side,
        fmt::format(
            R"({{"format_version":1,"tokens":{},"text_bytes":1,"vocab_size":{},"vocab_hash":"{}","xxh3_128":"{}"}})",
            bytes > 1026 ? (bytes - 1026) / 2 : 0, vocab_size, std::string(32, 'a'),
            qt::xxh3_hex(qt::bytes_of(content))));
  }
  read(path, vocab_size);
  return 0;
}

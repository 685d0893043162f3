// safetensors: named tensors in one file. u64 header length, a JSON header
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}},
// then the tensors' bytes, row-major and little-endian, without holes. Offsets count from the end of the
// header.
//
// The reader treats a file as hostile: every count is bounded by the bytes that are really there before
// anything is allocated, and what it accepts has one meaning only. Memory stays below twice the header
// plus 64 MiB. Writing is safetensors_writer.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/tensor.h"
#include "src/io/file.h"

namespace qt {

// Element types a file may hold. The sub-byte types of newer writers are not read.
enum class StoredType : std::uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64
};

std::string_view stored_name(StoredType type);  // "BF16"
std::int64_t stored_bytes(StoredType type);
StoredType to_stored(DType type);
// Bytes of a tensor; empty where a size is negative or the product leaves 63 bits.
std::optional<std::int64_t> stored_bytes(StoredType type, std::span<const std::int64_t> shape);
// Names reach messages, terminals and C interfaces: not empty, no control characters, not "__metadata__".
bool valid_tensor_name(std::string_view name);
// Empty where qtrain has no such type to compute with.
std::optional<DType> to_dtype(StoredType type);

using Metadata = std::map<std::string, std::string>;

struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;  // of any rank; empty: a scalar
  const std::byte* data = nullptr;  // read-only, in the mapped file. Foreign files need not align it to the
                                    // element type, so copy with memcpy
  std::uint64_t bytes = 0;
  std::uint64_t file_offset = 0;

  std::int64_t elems() const { return static_cast<std::int64_t>(bytes) / stored_bytes(type); }
};

class Safetensors {
 public:
  static constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own bound
  static constexpr std::size_t kMaxTensors = 200'000;
  static constexpr std::size_t kMaxMetadata = 10'000;
  static constexpr std::size_t kMaxRank = 64;
  static constexpr std::size_t kMaxStringBytes = std::size_t{16} << 20;  // a name or a metadata value
  static constexpr std::size_t kMaxNumberBytes = 1000;

  // Maps the file; tensor data is valid as long as this object. DataError names file and tensor.
  static Safetensors open(const std::filesystem::path& path);
  // The same on memory that the caller keeps. `file` is only named in messages.
  static Safetensors parse(std::span<const std::byte> bytes, std::string file);

  const std::string& file() const { return file_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in the order of their bytes
  const Metadata& metadata() const { return metadata_; }

  const StoredTensor* find(std::string_view name) const;  // nullptr if absent
  // DataError naming the file if absent, or if dtype or shape differ.
  const StoredTensor& get(std::string_view name) const;
  const StoredTensor& get(std::string_view name, DType type, std::span<const std::int64_t> shape) const;

 private:
  Safetensors() = default;
  void read(std::span<const std::byte> bytes);

  std::string file_;
  std::optional<MappedFile> map_;
  std::vector<StoredTensor> tensors_;
  std::vector<std::uint32_t> by_name_;  // indices of tensors_
  Metadata metadata_;
};

}  // namespace qt

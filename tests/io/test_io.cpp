// Files, hashes, JSON and safetensors: what is written comes back, and what is not right says so. Checkpoint
// folders are in test_checkpoint.cpp, hostile input in test_hostile_files.cpp.
#include <sys/stat.h>

#include <cstring>
#include <numeric>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "src/io/safetensors_writer.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

namespace qt {
namespace {

using test::Fault;
using test::FaultFs;
using test::message_of;
using test::TempDir;

std::string pattern_text(std::size_t bytes) {
  std::string text(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>((i * 2654435761u) >> 24);
  return text;
}

TEST(Hash, MatchesThePublishedValueOfTheEmptyInput) {
  EXPECT_EQ(xxh3_hex({}), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(Xxh3().hex(), "99aa06d3014798d86001c324468d497f");
}

TEST(Hash, DoesNotDependOnHowTheBytesAreCut) {
  const std::string text = pattern_text(5000);
  for (const std::size_t piece : {1u, 7u, 240u, 1024u, 4999u}) {
    Xxh3 hash;
    for (std::size_t i = 0; i < text.size(); i += piece)
      hash.update(bytes_of(std::string_view(text).substr(i, piece)));
    EXPECT_EQ(hash.hex(), xxh3_hex(bytes_of(text)));
  }
}

TEST(File, WhatIsWrittenInPiecesOfAnySizeIsReadBack) {
  for (const std::size_t piece : {1u, 100u, 32767u, 32768u, 32769u, 100000u}) {
    const TempDir dir;
    const std::string text = pattern_text(100000);
    OutputFile out(posix_fs(), dir / "f");
    for (std::size_t i = 0; i < text.size(); i += piece) out.write(std::string_view(text).substr(i, piece));
    out.finish();
    EXPECT_TRUE(out.finished());
    EXPECT_EQ(out.bytes(), text.size());
    EXPECT_EQ(out.hash_hex(), xxh3_hex(bytes_of(text)));
    EXPECT_EQ(test::get(dir / "f"), text);
    EXPECT_EQ(read_file(dir / "f", 1 << 20), text);
    EXPECT_EQ(InputFile(dir / "f").hash_hex(), out.hash_hex());
    const MappedFile map(dir / "f");
    EXPECT_EQ(std::memcmp(map.bytes().data(), text.data(), text.size()), 0);
  }
}

TEST(File, ShortAndInterruptedWritesAreCompleted) {
  const TempDir dir;
  FaultFs fs(Fault::short_write);
  OutputFile out(fs, dir / "f");
  out.write(pattern_text(1000));
  out.finish();
  EXPECT_EQ(test::get(dir / "f"), pattern_text(1000));
}

TEST(File, AFailedFsyncIsReportedAndNeverTriedAgain) {
  const TempDir dir;
  FaultFs fs(Fault::fail_once, 2, EIO);  // create, write, fsync
  OutputFile out(fs, dir / "f");
  out.write("abc");
  const auto first = message_of<DiskError>([&] { out.finish(); });
  EXPECT_TRUE(first.find("cannot fsync") != std::string::npos &&
              first.find("Input/output error") != std::string::npos)
      << first;
  EXPECT_NE(message_of<DiskError>([&] { out.finish(); }).find("an earlier operation on it failed"),
            std::string::npos);
  EXPECT_NE(message_of<DiskError>([&] { out.write("more"); }).find("an earlier operation"),
            std::string::npos);
  EXPECT_EQ(std::count(fs.log().begin(), fs.log().end(), "fsync"), 1);
}

TEST(File, AFullDiskIsNamedWithPathOperationAndHint) {
  const TempDir dir;
  FaultFs fs(Fault::fail_once, 1, ENOSPC);
  OutputFile out(fs, dir / "weights");
  try {
    out.write(pattern_text(40000));
    FAIL() << "the write did not fail";
  } catch (const DiskError& e) {
    const std::string text = e.what();
    EXPECT_EQ(text, "cannot write '" + (dir / "weights").string() + "': No space left on device");
    EXPECT_NE(e.hint().find("df -h"), std::string::npos);
    EXPECT_EQ(e.code(), ExitCode::disk);
  }
}

TEST(File, AnExistingFileIsNotOverwrittenUnlessAsked) {
  const TempDir dir;
  test::put(dir / "f", "old");
  EXPECT_NE(message_of<DiskError>([&] { OutputFile(posix_fs(), dir / "f"); }).find("File exists"),
            std::string::npos);
  OutputFile out(posix_fs(), dir / "f", OutputFile::Existing::replace);
  out.write("new");
  out.finish();
  EXPECT_EQ(test::get(dir / "f"), "new");
}

TEST(File, ReadingPastTheEndOrAnythingButAFileIsADataError) {
  const TempDir dir;
  test::put(dir / "f", "12345678");
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink(dir / "f", dir / "link");
  std::array<std::byte, 4> four{};
  EXPECT_NE(message_of<DataError>([&] { InputFile(dir / "f").read_at(6, four); }).find("ends at byte 8"),
            std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { InputFile(dir / "none"); }).find("No such file"), std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { InputFile(dir.path()); }).find("is a folder"), std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { InputFile(dir / "pipe"); }).find("is a pipe"), std::string::npos);
  EXPECT_NE(
      message_of<DataError>([&] { InputFile(dir / "link", InputFile::Links::refuse); }).find("symbolic link"),
      std::string::npos);
  EXPECT_EQ(InputFile(dir / "link").bytes(), 8u);
  EXPECT_NE(message_of<DataError>([&] { read_file(dir / "f", 7); }).find("has 8 bytes; at most 7"),
            std::string::npos);
  test::put(dir / "empty", "");
  EXPECT_TRUE(MappedFile(dir / "empty").bytes().empty());
}

TEST(File, AtomicReplacementLeavesTheOldContentOrTheNewAtEveryFailure) {
  const auto attempt = [](FaultFs& fs) {
    const TempDir dir;
    test::put(dir / "f", "old");
    const bool failed =
        !message_of<DiskError>([&] { write_file_atomically(fs, dir / "f", bytes_of("new")); }).empty();
    const std::string now = test::get(dir / "f");
    EXPECT_TRUE(failed ? now == "old" || now == "new" : now == "new");
    return failed;
  };
  FaultFs clean;
  EXPECT_FALSE(attempt(clean));
  // The last operation closes the folder, after everything is durable: its result tells nothing.
  for (std::int64_t at = 0; at + 1 < clean.operations(); ++at) {
    for (const Fault fault : {Fault::fail_once, Fault::crash, Fault::crash_torn}) {
      SCOPED_TRACE(clean.log()[static_cast<std::size_t>(at)]);
      FaultFs fs(fault, at, EIO);
      EXPECT_TRUE(attempt(fs));
    }
  }
}

TEST(File, RenamingDurablySyncsTheFileBeforeAndTheFolderAfter) {
  const TempDir dir;
  test::put(dir / "a", "x");
  FaultFs fs;
  rename_durably(fs, dir / "a", dir / "b");
  const std::string folder = dir.path().filename().string();
  EXPECT_EQ(fs.log(), (std::vector<std::string>{"open a", "fsync", "close", "rename a b", "open " + folder,
                                                "fsync", "close"}));
  EXPECT_EQ(list_dir(dir.path()), std::vector<std::string>{"b"});
}

TEST(File, NewFoldersAreSyncedInTheFolderThatHoldsThem) {
  const TempDir dir;
  FaultFs fs;
  make_folders(fs, dir / "a" / "b");
  const std::string folder = dir.path().filename().string();
  EXPECT_EQ(fs.log(), (std::vector<std::string>{"mkdir a", "open " + folder, "fsync", "close", "mkdir b",
                                                "open a", "fsync", "close"}));
  make_folders(fs, dir / "a" / "b");
  EXPECT_EQ(fs.operations(), 8) << "existing folders are left alone";
  test::put(dir / "file", "x");
  for (const char* name : {"file", "file/below"}) {
    const auto text = message_of<DiskError>([&] { make_folders(fs, dir / name); });
    EXPECT_NE(text.find("cannot create the folder"), std::string::npos) << name << text;
  }
}

TEST(File, NamesFromOutsideAreQuotedEscapedAndCut) {
  EXPECT_EQ(in_quotes("a\nb\x1b[31m"), "'a\\x0ab\\x1b[31m'");
  const std::string cut = in_quotes(std::string(1000, 'x') + "end");
  EXPECT_LT(cut.size(), 260u);
  EXPECT_TRUE(cut.ends_with("end'"));
  std::string umlauts;
  for (int i = 0; i < 500; ++i) umlauts += "\u00e4";
  EXPECT_NO_THROW(Json(in_quotes("x" + umlauts)).dump());  // dump() throws for half a character
  EXPECT_NO_THROW(Json(in_quotes(umlauts)).dump());
}

TEST(File, TooLittleFreeSpaceIsRefusedWithBothNumbers) {
  const TempDir dir;
  FaultFs fs;
  fs.set_free_bytes(1 << 20);
  EXPECT_NO_THROW(require_free(fs, dir.path(), 1 << 20, "a test"));
  const auto text = message_of<DiskError>([&] { require_free(fs, dir.path(), (1 << 20) + 1, "a test"); });
  EXPECT_TRUE(text.find("1048577") != std::string::npos && text.find("1048576") != std::string::npos) << text;
  EXPECT_NO_THROW(require_free(posix_fs(), dir.path(), 1, "a test"));
}

TEST(JsonFile, FieldsAreReadWithTypeAndRange) {
  const Json json = parse_json(
      R"({"i":-5,"u":18446744073709551615,"d":1.5,"b":true,"s":"x","a":[1],"o":{"k":1}})", "f.json");
  EXPECT_EQ(json_int(json, "i", "f.json"), -5);
  EXPECT_EQ(json_uint(json, "u", "f.json"), 18446744073709551615u);
  EXPECT_EQ(json_number(json, "d", "f.json"), 1.5);
  EXPECT_TRUE(json_bool(json, "b", "f.json"));
  EXPECT_EQ(json_string(json, "s", "f.json"), "x");
  EXPECT_EQ(json_array(json, "a", "f.json").size(), 1u);
  EXPECT_EQ(json_int(json_object(json, "o", "f.json"), "k", "f.json"), 1);
  EXPECT_TRUE(json_has(json, "i") && !json_has(json, "none"));

  const auto want = [](const std::string& text, auto&& body) {
    EXPECT_EQ(message_of<DataError>(body), text);
  };
  want("f.json: field 'none' is missing", [&] { json_int(json, "none", "f.json"); });
  want("f.json: field 's' must be a whole number from 0 to 9, got the string 'x'",
       [&] { json_int(json, "s", "f.json", 0, 9); });
  want("f.json: field 'i' must be a whole number from 0 to 9, got -5",
       [&] { json_int(json, "i", "f.json", 0, 9); });
  want("f.json: field 'i' must be a whole number from 0 to 9, got -5",
       [&] { json_uint(json, "i", "f.json", 9); });
  want("f.json: field 'u' must be a whole number from 0 to 9, got 18446744073709551615",
       [&] { json_int(json, "u", "f.json", 0, 9); });
  want("f.json: field 'd' must be a whole number from 0 to 9, got 1.5",
       [&] { json_int(json, "d", "f.json", 0, 9); });
  want("f.json: field 'a' must be a string, got an array", [&] { json_string(json, "a", "f.json"); });
  want("f.json: field 'i' must be true or false, got -5", [&] { json_bool(json, "i", "f.json"); });
  want("f.json: field 'o' must be an array, got an object", [&] { json_array(json, "o", "f.json"); });
  want("f.json: field 'a' must be an object, got an array", [&] { json_object(json, "a", "f.json"); });
  want("f.json: field 'b' must be a number, got true", [&] { json_number(json, "b", "f.json"); });
  want("f.json: must be an object, got an array", [&] { json_int(json["a"], "k", "f.json"); });
}

std::string file_of(const TempDir& dir, const std::vector<TensorSpec>& specs, const std::string& data,
                    const Metadata& metadata = {}, std::size_t piece = 1 << 20) {
  OutputFile out(posix_fs(), dir / "t.safetensors", OutputFile::Existing::replace);
  SafetensorsWriter writer(out, specs, metadata);
  std::size_t at = 0;
  for (const auto& spec : specs) {
    const std::size_t end = at + static_cast<std::size_t>(*stored_bytes(spec.type, spec.shape));
    while (at < end) {
      const std::size_t n = std::min(piece, end - at);
      writer.write(spec.name, bytes_of(std::string_view(data).substr(at, n)));
      at += n;
    }
  }
  writer.finish();
  out.finish();
  return test::get(dir / "t.safetensors");
}

TEST(SafetensorsFile, RoundTripsEveryTypeRankAndPieceSize) {
  const std::vector<TensorSpec> specs = {
      {"deep", StoredType::f32, {1, 2, 1, 2, 1, 2, 1}},
      {"scalar", StoredType::f64, {}},
      {"empty", StoredType::i64, {0}},
      {"empty.rows", StoredType::bf16, {3, 0, 5}},
      {"half", StoredType::f16, {5}},
      {"brain \"quoted\" \u00e4", StoredType::bf16, {3, 3}},
      {"byte", StoredType::u8, {7}},
      {"flag", StoredType::boolean, {1}},
      {"int", StoredType::i32, {2}},
      {"last.empty", StoredType::f32, {0, 0}},
  };
  std::size_t total = 0;
  for (const auto& spec : specs) total += static_cast<std::size_t>(*stored_bytes(spec.type, spec.shape));
  const std::string data = pattern_text(total);
  const Metadata metadata = {{"format", "pt"}, {"note", "line\nbreak"}};

  for (const std::size_t piece : {1u, 3u, 1000u}) {
    const TempDir dir;
    const std::string bytes = file_of(dir, specs, data, metadata, piece);
    const auto file = Safetensors::open(dir / "t.safetensors");
    EXPECT_EQ(file.metadata(), metadata);
    ASSERT_EQ(file.tensors().size(), specs.size());
    std::size_t at = 0;
    for (const auto& spec : specs) {
      const auto& tensor = file.get(spec.name);
      EXPECT_EQ(tensor.type, spec.type) << spec.name;
      EXPECT_EQ(tensor.shape, spec.shape) << spec.name;
      ASSERT_EQ(tensor.bytes, static_cast<std::uint64_t>(*stored_bytes(spec.type, spec.shape)));
      EXPECT_EQ(std::memcmp(tensor.data, data.data() + at, tensor.bytes), 0) << spec.name;
      EXPECT_EQ(std::memcmp(bytes.data() + tensor.file_offset, data.data() + at, tensor.bytes), 0)
          << spec.name;
      at += tensor.bytes;
    }
    EXPECT_EQ(file.get("deep").file_offset % 8, 0u);
    EXPECT_EQ(file.find("none"), nullptr);
  }
}

TEST(SafetensorsFile, AFileWithoutTensorsIsValid) {
  const TempDir dir;
  const std::string bytes = file_of(dir, {}, "");
  EXPECT_EQ(bytes, std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  EXPECT_TRUE(Safetensors::open(dir / "t.safetensors").tensors().empty());
}

// Laid out as other writers do it: metadata first, no particular order of names, unpadded and unaligned.
TEST(SafetensorsFile, ReadsAFileInAnotherWritersStyle) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"}, "b": {"shape":[2],"data_offsets":[3,7],"dtype":"I16"},"a":{"dtype":"U8","shape":[3,1],"data_offsets":[0,3]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  bytes += header + "\x01\x02\x03\x04\x05\x06\x07";
  const auto file = Safetensors::parse(bytes_of(bytes), "memory");
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.get("b").elems(), 2);
  EXPECT_EQ(std::to_integer<int>(file.get("b").data[0]), 4);
}

TEST(SafetensorsFile, TypesMapToTheOnesWeComputeWithAndBack) {
  for (const DType type :
       {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u8, DType::i32, DType::i64}) {
    EXPECT_EQ(to_dtype(to_stored(type)), type);
    EXPECT_EQ(stored_bytes(to_stored(type)), dtype_bytes(type));
  }
  EXPECT_EQ(to_dtype(StoredType::boolean), std::nullopt);
}

TEST(SafetensorsFile, AnUnexpectedTypeOrShapeIsNamedWithBoth) {
  const TempDir dir;
  file_of(dir, {{"w", StoredType::bf16, {2, 3}}}, pattern_text(12));
  const auto file = Safetensors::open(dir / "t.safetensors");
  const std::vector<std::int64_t> good = {2, 3}, bad = {3, 2};
  EXPECT_NO_THROW(file.get("w", DType::bf16, good));
  EXPECT_NE(message_of<DataError>([&] {
              file.get("w", DType::bf16, bad);
            }).find("is [2, 3] BF16; expected [3, 2] BF16"),
            std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { file.get("w", DType::f32, good); }).find("expected [2, 3] F32"),
            std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { file.get("v"); }).find("has no tensor 'v'"), std::string::npos);
}

TEST(SafetensorsFile, TheWriterRefusesWrongCountsOrderAndNames) {
  const TempDir dir;
  const auto bytes8 = bytes_of("12345678");
  const auto attempt = [&](std::vector<TensorSpec> specs, auto&& body) {
    return message_of<ShapeError>([&] {
      OutputFile out(posix_fs(), dir / "w", OutputFile::Existing::replace);
      SafetensorsWriter writer(out, std::move(specs));
      body(writer);
    });
  };
  const std::vector<TensorSpec> two = {{"a", StoredType::u8, {4}}, {"b", StoredType::u8, {4}}};
  const auto nothing = [](SafetensorsWriter&) {};
  EXPECT_NE(attempt(two, [&](auto& w) { w.write("a", bytes8); }).find("8 bytes were given where 4 are left"),
            std::string::npos);
  EXPECT_NE(attempt(two, [&](auto& w) { w.write("b", bytes8.first(4)); }).find("'a' is next"),
            std::string::npos);
  EXPECT_NE(attempt(two, [&](auto& w) { w.write(bytes8.first(4)), w.write(bytes8.first(3)), w.finish(); })
                .find("'b' is incomplete"),
            std::string::npos);
  EXPECT_NE(
      attempt(two,
              [&](auto& w) { w.write(bytes8.first(4)), w.write(bytes8.first(4)), w.write(bytes8.first(1)); })
          .find("1 bytes more"),
      std::string::npos);
  EXPECT_NE(attempt({{"a", StoredType::u8, {4}}, {"a", StoredType::u8, {4}}}, nothing).find("listed twice"),
            std::string::npos);
  EXPECT_NE(attempt({{"", StoredType::u8, {4}}}, nothing).find("cannot name"), std::string::npos);
  EXPECT_NE(attempt({{"__metadata__", StoredType::u8, {4}}}, nothing).find("cannot name"), std::string::npos);
  EXPECT_NE(attempt({{"a", StoredType::u8, {-4}}}, nothing).find("negative or too large"), std::string::npos);
  EXPECT_NE(attempt({{"a", StoredType::f32, {1LL << 31, 1LL << 31}}}, nothing).find("negative or too large"),
            std::string::npos);
}

TEST(SafetensorsFile, EveryTruncationIsRefused) {
  const TempDir dir;
  const std::string bytes =
      file_of(dir, {{"a", StoredType::f32, {2}}, {"b", StoredType::u8, {3}}}, pattern_text(11));
  ASSERT_NO_THROW(Safetensors::parse(bytes_of(bytes), "whole"));
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(message_of<DataError>([&] { Safetensors::parse(bytes_of(bytes).first(n), "cut"); }).empty())
        << n;
  }
}

}  // namespace
}  // namespace qt

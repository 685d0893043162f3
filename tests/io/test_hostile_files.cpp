// Hand-made bad files. Each case names the message it must produce, so that no case passes for a wrong
// reason. Here: safetensors, manifests, JSON. Token shards and tokenizers have their own files.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/checkpoint.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "tests/support/temp_dir.h"

namespace qt {
namespace {

using test::message_of;
using test::TempDir;

std::string with_length(std::uint64_t header_bytes, std::string_view rest) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &header_bytes, 8);
  return bytes.append(rest);
}

std::string with_header(std::string_view header, std::size_t data_bytes = 0) {
  return with_length(header.size(), header) + std::string(data_bytes, 'd');
}

// One tensor with the entry `fields`.
std::string tensor(std::string_view fields, std::size_t data_bytes) {
  return with_header(fmt::format(R"({{"w":{{{}}}}})", fields), data_bytes);
}

std::string repeat(std::string_view text, std::size_t count) {
  std::string all;
  for (std::size_t i = 0; i < count; ++i) all += text;
  return all;
}

struct HostileCase {
  const char* name;
  std::string bytes;
  std::string message;  // must occur in the error
};

std::vector<HostileCase> safetensors_cases() {
  const std::string good = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";
  std::string many_tensors = "{", many_entries = R"({"__metadata__":{)";
  for (std::size_t i = 0; i <= Safetensors::kMaxTensors; ++i) {
    many_tensors +=
        fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i == 0 ? "" : ",", i);
  }
  for (std::size_t i = 0; i <= Safetensors::kMaxMetadata; ++i)
    many_entries += fmt::format(R"({}"{}":"")", i == 0 ? "" : ",", i);
  return {
      {"EmptyFile", "", "has 0 bytes; a safetensors file starts with 8 bytes"},
      {"SevenBytes", "1234567", "has 7 bytes; a safetensors file starts with 8 bytes"},
      {"HeaderLengthZero", with_length(0, "{}"), "the header is empty"},
      {"HeaderBeyondTheFile", with_length(3, "{}"), "the header length is 3, but only 2 bytes follow"},
      {"HeaderLengthOverTheFormatsBound", with_length(100'000'001, "{}"),
       "the header length is 100000001; the format allows"},
      {"HeaderLengthTwoToThe63", with_length(std::uint64_t{1} << 63, "{}"),
       "the header length is 9223372036854775808"},
      {"HeaderLengthThatWrapsWhenEightIsAdded", with_length(~std::uint64_t{7}, "{}"),
       "is this a safetensors file?"},
      {"PickleInstead", "\x80\x02}q\x01(X\x05trick", "is this a safetensors file?"},
      {"HeaderIsAnArray", with_header("[]"), "the header does not start with '{'"},
      {"HeaderStartsWithBlanks", with_header("  {}"), "the header does not start with '{'"},
      {"HeaderStartsWithAByteOrderMark", with_header("\xEF\xBB\xBF{}"), "the header does not start with '{'"},
      {"HeaderIsNotJson", with_header("{hello}"), "header: not valid JSON at byte 2"},
      {"HeaderIsCutInsideAString", with_header(R"({"w)"), "header: not valid JSON at byte 4"},
      {"HeaderIsFollowedByASecondObject", with_header("{}{}"), "header: not valid JSON at byte 3"},
      {"HeaderIsFollowedByANulAndMore", with_header(std::string("{}\0{}", 5)),
       "a NUL byte in the header, at byte 10"},
      {"HeaderHasAComment", with_header("{}/*x*/"), "header: not valid JSON at byte 3"},
      {"HeaderHasATrailingComma", with_header(fmt::format(R"({{"w":{{{}}},}})", good), 4),
       "header: not valid JSON"},
      {"HeaderIsNotUtf8", with_header("{\"\xFF\":1}"), "header: not valid JSON at byte 3"},
      {"HeaderHasALoneSurrogate", with_header(R"({"\ud800":1})"), "header: not valid JSON"},
      {"HeaderNestsDeeply", with_header("{\"w\":" + repeat("[", 100'000)),
       "'w' is an array; expected an object"},
      {"ObjectsNestInATensor", tensor(R"("shape":{"a":1})", 0),
       "'shape' is an object; expected an array of numbers"},
      {"ArraysNestInAShape", tensor(R"("shape":[[4]])", 4), "'shape' holds an array; expected whole numbers"},
      {"TensorIsANumber", with_header(R"({"w":5})"), "'w' is a number; expected an object"},
      {"TensorIsNull", with_header(R"({"w":null})"), "'w' is null; expected an object"},
      {"TensorIsAString", with_header(R"({"w":"x"})"), "'w' is a string; expected an object"},
      {"DtypeMissing", tensor(R"("shape":[4],"data_offsets":[0,4])", 4), "tensor 'w': 'dtype' is missing"},
      {"ShapeMissing", tensor(R"("dtype":"U8","data_offsets":[0,4])", 4), "tensor 'w': 'shape' is missing"},
      {"OffsetsMissing", tensor(R"("dtype":"U8","shape":[4])", 4), "tensor 'w': 'data_offsets' is missing"},
      {"DtypeIsANumber", tensor(R"("dtype":8,"shape":[4],"data_offsets":[0,4])", 4),
       "'dtype' is a number; expected a string"},
      {"DtypeIsAnArray", tensor(R"("dtype":["U8"],"shape":[4],"data_offsets":[0,4])", 4),
       "'dtype' is an array; expected a string"},
      {"DtypeUnknown", tensor(R"("dtype":"F31","shape":[4],"data_offsets":[0,4])", 4),
       "tensor 'w': unknown dtype 'F31'"},
      {"DtypeInLowerCase", tensor(R"("dtype":"u8","shape":[4],"data_offsets":[0,4])", 4),
       "tensor 'w': unknown dtype 'u8'"},
      {"DtypeTwice", tensor(R"("dtype":"U8",)" + good, 4), "tensor 'w': 'dtype' appears twice"},
      {"ShapeTwice", tensor(R"("shape":[4],)" + good, 4), "tensor 'w': 'shape' appears twice"},
      {"OffsetsTwice", tensor(R"("data_offsets":[0,4],)" + good, 4),
       "tensor 'w': 'data_offsets' appears twice"},
      {"UnknownField", tensor(R"("strides":[1],)" + good, 4), "tensor 'w': unknown field 'strides'"},
      {"ShapeIsANumber", tensor(R"("dtype":"U8","shape":4,"data_offsets":[0,4])", 4),
       "'shape' is a number; expected an array"},
      {"ShapeIsNegative", tensor(R"("dtype":"U8","shape":[-4],"data_offsets":[0,4])", 4),
       "'shape' has a negative number"},
      {"ShapeIsTwiceNegative", tensor(R"("dtype":"U8","shape":[-2,-2],"data_offsets":[0,4])", 4),
       "'shape' has a negative number"},
      {"ShapeIsAFraction", tensor(R"("dtype":"U8","shape":[4.0],"data_offsets":[0,4])", 4),
       "'shape' has '4.0', which is not a whole number"},
      {"ShapeHasAString", tensor(R"("dtype":"U8","shape":["4"],"data_offsets":[0,4])", 4),
       "'shape' holds a string"},
      {"ShapeHasTrue", tensor(R"("dtype":"U8","shape":[true],"data_offsets":[0,1])", 1),
       "'shape' holds a boolean"},
      {"ShapeBeyond63Bits", tensor(R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,4])", 4),
       "'shape' has 9223372036854775808, which is beyond 63 bits"},
      {"ShapeBeyond64Bits", tensor(R"("dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4])", 4),
       "'shape' has '18446744073709551616', which is not"},
      {"ShapeProductWrapsToZero",
       tensor(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0),
       "has more bytes than 63 bits can count"},
      {"ShapeTimesElementSizeWraps",
       tensor(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
       "has more bytes than 63 bits can count"},
      {"ShapeHasTooManySizes",
       tensor(R"("dtype":"U8","shape":[)" + repeat("1,", 64) + R"(4],"data_offsets":[0,4])", 4),
       "'shape' has more than 64 sizes"},
      {"ShapeLargerThanItsBytes", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,4])", 4),
       "[4] F32 takes 16 bytes, but data_offsets [0, 4] give it 4"},
      {"ShapeSmallerThanItsBytes", tensor(R"("dtype":"U8","shape":[3],"data_offsets":[0,4])", 4),
       "[3] U8 takes 3 bytes, but data_offsets [0, 4] give it 4"},
      {"OffsetsReversed", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])", 4),
       "data_offsets [4, 0] are reversed"},
      {"OffsetsBeyondTheData", tensor(R"("dtype":"U8","shape":[5],"data_offsets":[0,5])", 4),
       "data_offsets [0, 5] reach beyond the 4 bytes of data"},
      {"OffsetsNearTwoToThe64",
       tensor(R"("dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,18446744073709551615])", 4),
       "reach beyond the 4 bytes of data"},
      {"OffsetsNegative", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[-4,0])", 4),
       "'data_offsets' has a negative number"},
      {"OffsetsAreThree", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4,4])", 4),
       "'data_offsets' has more than two numbers"},
      {"OffsetsAreOne", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4])", 4),
       "'data_offsets' has fewer than two numbers"},
      {"OffsetsAreAFraction", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4e0])", 4),
       "'data_offsets' has '4e0', which is not a whole number"},
      {"DataStartsWithAHole", tensor(R"("dtype":"U8","shape":[3],"data_offsets":[1,4])", 4),
       "tensor 'w' starts at data byte 1, but the one before ends at 0: a hole"},
      {"HoleBetweenTensors",
       with_header(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
           3),
       "tensor 'b' starts at data byte 2, but the one before ends at 1: a hole"},
      {"TensorsOverlap",
       with_header(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
           3),
       "tensor 'b' starts at data byte 1, but the one before ends at 2: an overlap"},
      {"TensorsShareTheirBytes",
       with_header(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
           2),
       "tensor 'b' starts at data byte 0, but the one before ends at 2"},
      {"EmptyTensorInsideAnother",
       with_header(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
           4),
       "tensor 'b' starts at data byte 2, but the one before ends at 4"},
      {"BytesBehindTheLastTensor", tensor(good, 5), "1 bytes behind the last tensor belong to no tensor"},
      {"BytesWithoutAnyTensor", with_header("{}", 3), "3 bytes behind the last tensor belong to no tensor"},
      {"NameTwice",
       with_header(
           R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
       "the tensor 'a' appears twice"},
      {"NameTwiceOnceEscaped",
       with_header(
           R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
       "the tensor 'a' appears twice"},
      {"NameHasANul", with_header(R"({"a\u0000b":{}})"),
       R"(the tensor name 'a\x00b' is empty or has control characters)"},
      {"NameHasATerminalEscape", with_header(R"({"\u001b[2J":{}})"),
       R"(the tensor name '\x1b[2J' is empty or has control)"},
      {"NameIsEmpty", with_header(R"({"":{}})"), "the tensor name '' is empty"},
      {"NameIsHuge", with_header("{\"" + std::string(17 << 20, 'n') + "\":{}}"),
       "a string in the header is longer than"},
      {"NumberIsHuge", with_header("{\"w\":" + std::string(5000, '1') + "}"),
       "a number in the header is longer than 1000 bytes"},
      {"MetadataIsAnArray", with_header(R"({"__metadata__":[]})"),
       "'__metadata__' is an array; expected an object"},
      {"MetadataHasANumber", with_header(R"({"__metadata__":{"n":1}})"),
       "__metadata__ entry 'n' is a number; expected a string"},
      {"MetadataHasAnObject", with_header(R"({"__metadata__":{"n":{}}})"),
       "__metadata__ entry 'n' is an object; expected a string"},
      {"MetadataKeyTwice", with_header(R"({"__metadata__":{"n":"1","n":"2"}})"),
       "__metadata__ has the key 'n' twice"},
      {"MetadataTwice", with_header(R"({"__metadata__":{},"__metadata__":{}})"),
       "__metadata__ appears twice"},
      {"MetadataHasTooManyEntries", with_header(many_entries + "}}"),
       "__metadata__ has more than 10000 entries"},
      {"TooManyTensors", with_header(many_tensors + "}"), "the header lists more than 200000 tensors"},
  };
}

TEST(HostileSafetensors, EveryBadFileIsRefusedForItsOwnReason) {
  const auto cases = safetensors_cases();
  EXPECT_GE(cases.size(), 33u);
  for (const auto& c : cases) {
    const auto text =
        message_of<DataError>([&] { Safetensors::parse(bytes_of(c.bytes), "bad.safetensors"); });
    EXPECT_NE(text.find(c.message), std::string::npos) << c.name << ": " << text;
    EXPECT_TRUE(text.starts_with("bad.safetensors: ")) << c.name << ": " << text;
    EXPECT_LT(text.size(), 600u) << c.name;
  }
}

// The control: what the cases above are made from is accepted.
TEST(HostileSafetensors, TheGoodFileTheBadOnesDeriveFromIsRead) {
  const std::string bytes = tensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])", 4);
  EXPECT_EQ(Safetensors::parse(bytes_of(bytes), "good").get("w").elems(), 4);
  EXPECT_NO_THROW(
      Safetensors::parse(bytes_of(with_header("{}   \n")), "blanks behind the object are padding"));
}

TEST(HostileSafetensors, FilesOnDiskGoThroughTheSameChecks) {
  const TempDir dir;
  test::put(dir / "bad.safetensors", with_length(3, "{}"));
  const auto text = message_of<DataError>([&] { Safetensors::open(dir / "bad.safetensors"); });
  EXPECT_NE(text.find((dir / "bad.safetensors").string() + ": the header length is 3"), std::string::npos)
      << text;
  EXPECT_NE(message_of<DataError>([&] { Safetensors::open(dir / "none"); }).find("No such file"),
            std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { Safetensors::open(dir.path()); }).find("is a folder"),
            std::string::npos);
}

// Whatever one changed byte does, the reader accepts or refuses; it never reads outside (under a sanitizer)
// or hands out a tensor that does.
TEST(HostileSafetensors, AnyChangedByteIsAcceptedWholeOrRefused) {
  const std::string good = with_header(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3,1],"data_offsets":[8,11]}})",
      11);
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (const int change : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
      std::string bytes = good;
      bytes[i] = static_cast<char>(bytes[i] ^ change);
      message_of<DataError>([&] {
        std::uint64_t covered = 0;
        const auto file = Safetensors::parse(bytes_of(bytes), "changed");
        for (const auto& t : file.tensors()) {
          covered += t.bytes;
          ASSERT_LE(t.file_offset + t.bytes, bytes.size());
        }
        ASSERT_EQ(covered, 11u);
      });
    }
  }
}

// ------------------------------------------------------------------------------------------ manifests

constexpr const char* kHash = "99aa06d3014798d86001c324468d497f";

// A manifest with one changed field, sealed as an attacker would seal it.
std::string manifest_with(std::string_view field, std::string_view value) {
  Json json = {{"format_version", 1}, {"program", "x"}, {"step", 5}, {"created", "2026-01-01T00:00:00Z"}};
  json["files"] = Json::array({{{"name", "a"}, {"bytes", 0}, {"xxh3_128", kHash}}});
  const Json parsed = Json::parse(value);
  if (field == "name" || field == "bytes" || field == "xxh3_128") {
    json["files"][0][std::string(field)] = parsed;
  } else if (!field.empty()) {
    json[std::string(field)] = parsed;
  }
  return seal_manifest(json.dump());
}

std::string manifest_without(std::string_view field) {
  std::string text = manifest_with("", "null");
  Json json = Json::parse(text);
  json.erase("manifest_xxh3_128");
  if (json.contains(field)) {
    json.erase(std::string(field));
  } else {
    json["files"][0].erase(std::string(field));
  }
  return seal_manifest(json.dump());
}

std::vector<HostileCase> manifest_cases() {
  std::string twenty_thousand = "[";
  for (int i = 0; i < 20'000; ++i)
    twenty_thousand +=
        fmt::format(R"({}{{"name":"f{}","bytes":0,"xxh3_128":"{}"}})", i == 0 ? "" : ",", i, kHash);
  const std::string file_a = fmt::format(R"({{"name":"a","bytes":0,"xxh3_128":"{}"}})", kHash);
  return {
      {"Empty", "", "too few for a manifest"},
      {"NotSealed",
       R"({"format_version": 1, "step": 5, "files": [], "created": "", "program": "", "padding": "012345678"})",
       "does not match its own hash"},
      {"SealedButNotJson", seal_manifest("{hello}"), "not valid JSON at byte 2"},
      {"SealedArray", seal_manifest("[1]}"), "not valid JSON"},
      {"TooLarge", std::string(5 << 20, ' '), "a manifest has at most 4194304"},
      {"FormatOfTomorrow", manifest_with("format_version", "2"),
       "format 2 was written by a newer qtrain; this one reads up to 1"},
      {"FormatZero", manifest_with("format_version", "0"),
       "field 'format_version' must be a whole number from 1 to 1000000, got 0"},
      {"FormatMissing", manifest_without("format_version"), "field 'format_version' is missing"},
      {"ProgramIsANumber", manifest_with("program", "1"), "field 'program' must be a string, got 1"},
      {"StepNegative", manifest_with("step", "-1"), "field 'step' must be a whole number from 0"},
      {"StepTooLarge", manifest_with("step", "9223372036854775808"),
       "field 'step' must be a whole number from 0 to 9223372036854775807, got 9223372036854775808"},
      {"StepAString", manifest_with("step", R"("5")"),
       "field 'step' must be a whole number from 0 to 9223372036854775807, got the string '5'"},
      {"StepMissing", manifest_without("step"), "field 'step' is missing"},
      {"CreatedMissing", manifest_without("created"), "field 'created' is missing"},
      {"FilesMissing", manifest_without("files"), "field 'files' is missing"},
      {"FilesIsAnObject", manifest_with("files", "{}"), "field 'files' must be an array, got an object"},
      {"FilesEmpty", manifest_with("files", "[]"), "lists no files"},
      {"FileIsAString", manifest_with("files", R"(["a"])"),
       "files[0]: must be an object, got the string 'a'"},
      {"TooManyFiles", manifest_with("files", twenty_thousand + "]"), "more than 40016 values"},
      {"NestedDeeply", manifest_with("program", repeat("[", 50) + repeat("]", 50)),
       "nested more than 3 levels deep"},
      {"KeyTwice", seal_manifest(R"({"step": 1, "step": 2})"), "the key 'step' appears twice in one object"},
      {"NameMissing", manifest_without("name"), "files[0]: field 'name' is missing"},
      {"NameLeadsUp", manifest_with("name", R"("../../etc/passwd")"),
       "files[0]: '../../etc/passwd' is not the name of a file in the checkpoint's folder"},
      {"NameIsAbsolute", manifest_with("name", R"("/etc/passwd")"),
       "'/etc/passwd' is not the name of a file"},
      {"NameIsInASubfolder", manifest_with("name", R"("sub/a")"), "'sub/a' is not the name of a file"},
      {"NameHasABackslash", manifest_with("name", R"("..\\a")"), R"('..\a' is not the name of a file)"},
      {"NameIsDots", manifest_with("name", R"("..")"), "'..' is not the name of a file"},
      {"NameIsEmpty", manifest_with("name", R"("")"), "'' is not the name of a file"},
      {"NameIsTheManifest", manifest_with("name", R"("manifest.json")"),
       "'manifest.json' is not the name of a file"},
      {"NameHasANul", manifest_with("name", R"("a\u0000b")"), R"('a\x00b' is not the name of a file)"},
      {"NameIsLong", manifest_with("name", '"' + std::string(300, 'n') + '"'), "is not the name of a file"},
      {"NameTwice", manifest_with("files", "[" + file_a + "," + file_a + "]"),
       "files[1]: 'a' is listed twice"},
      {"BytesNegative", manifest_with("bytes", "-1"),
       "files[0]: field 'bytes' must be a whole number from 0"},
      {"BytesAFraction", manifest_with("bytes", "1e3"),
       "files[0]: field 'bytes' must be a whole number from 0"},
      {"BytesMissing", manifest_without("bytes"), "files[0]: field 'bytes' is missing"},
      {"HashInUpperCase", manifest_with("xxh3_128", R"("99AA06D3014798D86001C324468D497F")"),
       "field 'xxh3_128' must be 32 lower-case hex digits"},
      {"HashTooShort", manifest_with("xxh3_128", R"("99aa")"),
       "field 'xxh3_128' must be 32 lower-case hex digits, got '99aa'"},
      {"HashMissing", manifest_without("xxh3_128"), "files[0]: field 'xxh3_128' is missing"},
  };
}

TEST(HostileManifest, EveryBadManifestIsRefusedForItsOwnReason) {
  EXPECT_EQ(parse_manifest(manifest_with("", "null"), "manifest.json").files.size(), 1u);  // the control
  for (const auto& c : manifest_cases()) {
    const auto text = message_of<DataError>([&] { parse_manifest(c.bytes, "manifest.json"); });
    EXPECT_NE(text.find(c.message), std::string::npos) << c.name << ": " << text;
    EXPECT_TRUE(text.starts_with("manifest.json: ")) << c.name << ": " << text;
    EXPECT_LT(text.size(), 600u) << c.name;
  }
}

TEST(HostileManifest, WhatItListsMustBeThereAsAPlainFileOfThatSize) {
  const TempDir run;
  const auto folder = run / "step-000000005";
  const auto verdict = [&](auto&& prepare) {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directory(folder);
    test::put(folder / "manifest.json", manifest_with("", "null"));
    prepare();
    return message_of<DataError>([&] { verify_checkpoint(folder); });
  };
  EXPECT_EQ(verdict([&] { test::put(folder / "a", ""); }), "");
  EXPECT_EQ(verdict([&] { test::put(folder / "a", ""), test::put(folder / "extra", "anything"); }), "");
  EXPECT_NE(verdict([] {}).find("a: is missing"), std::string::npos);
  EXPECT_NE(verdict([&] { test::put(folder / "a", "x"); }).find("a: has 1 bytes, the manifest says 0"),
            std::string::npos);
  EXPECT_NE(verdict([&] {
              std::filesystem::create_symlink("/etc/passwd", folder / "a");
            }).find("is a symbolic link"),
            std::string::npos);
  EXPECT_NE(verdict([&] { std::filesystem::create_directory(folder / "a"); }).find("is a folder"),
            std::string::npos);
  EXPECT_NE(verdict([&] {
              std::filesystem::remove(folder / "manifest.json");
              std::filesystem::create_symlink("/dev/zero", folder / "manifest.json");
            }).find("is a symbolic link"),
            std::string::npos);
  EXPECT_NE(
      verdict([&] { test::put(folder / "manifest.json", manifest_with("step", "6")); }).find("is for step 6"),
      std::string::npos);
}

// ----------------------------------------------------------------------------------------------- JSON

TEST(HostileJson, EveryBadTextIsRefusedForItsOwnReason) {
  const JsonLimits small{.max_bytes = 1000, .max_depth = 4, .max_values = 50};
  const std::vector<HostileCase> cases = {
      {"Empty", "", "not valid JSON at byte 1"},
      {"Cut", R"({"a": [1, 2)", "not valid JSON at byte 12"},
      {"NotUtf8", "\"\xC3\x28\"", "not valid JSON at byte 3"},
      {"TwoValues", "1 2", "not valid JSON at byte 3"},
      {"NulThenMore", std::string("1\0garbage", 9), "a NUL byte at byte 1"},
      {"ByteOrderMark", "\xEF\xBB\xBF{}", "starts with a byte order mark"},
      {"NumberOverflows", "1e999", "not valid JSON"},
      {"NotANumber", R"({"a": NaN})", "not valid JSON at byte 7"},
      {"TooDeep", "[[[[[]]]]]", "nested more than 4 levels deep"},
      {"TooManyValues", "[" + repeat("1,", 60) + "1]", "more than 50 values"},
      {"TooLong", std::string(1001, ' '), "has 1001 bytes of JSON; at most 1000 are read"},
      {"KeyTwice", R"({"a": {"b": 1, "b": 2}})", "the key 'b' appears twice in one object"},
      {"KeyTwiceBehindANestedObject", R"({"a": 1, "c": {"a": 1}, "a": 2})",
       "the key 'a' appears twice in one object"},
      {"LongToken", "[" + std::string(900, 'x'), "not valid JSON at byte 2"},
  };
  for (const auto& c : cases) {
    const auto text = message_of<DataError>([&] { parse_json(c.bytes, "f.json", small); });
    EXPECT_NE(text.find(c.message), std::string::npos) << c.name << ": " << text;
    EXPECT_LT(text.size(), 400u) << c.name;
  }
  EXPECT_NO_THROW(parse_json(R"({"a": {"x": 1}, "b": {"x": 1}, "c": [[{}]]})", "f.json", small));
}

}  // namespace
}  // namespace qt

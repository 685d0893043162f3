// Runs the built program on a tiny model, and what every refusal owes its user: an exit code, a message with
// names in it, a line that says what to do.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace qt::test {

using Words = std::vector<std::string>;

inline Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Changes a file in memory and writes it back.
inline void edit(const std::filesystem::path& path, const std::function<void(std::string&)>& change) {
  std::string content = read_text(path);
  ASSERT_FALSE(content.empty()) << path;
  change(content);
  write_text(path, content);
}

inline void cut_in_half(std::string& content) { content.resize(content.size() / 2); }
inline void flip_a_bit(std::string& content) { content[content.size() * 2 / 3] ^= 0x10; }

struct Ended {
  int code = 0;
  std::string out, err;
};

class Cli : public ::testing::Test {
 protected:
  TempDir dir;

  void SetUp() override {
    write_text(dir / "text.txt", tiny_text(400));
    std::filesystem::create_directory(dir / "work");
  }

  // In a folder of its own, where no `data` lies.
  Ended run(const Words& args) const {
    const Streams streams{.out = dir / "out", .err = dir / "err", .folder = dir / "work"};
    Ended ended;
    ended.code = finish_process(start_process(Words{QTRAIN_PROGRAM} + args, streams));
    ended.out = read_text(streams.out);
    ended.err = read_text(streams.err);
    return ended;
  }

  // What decides a tiny run, without --data.
  static Words shape() {
    return {"--model",
            "d2",
            "--quant",
            "nf4",
            "--ckpt-activations",
            "--seq-len",
            "32",
            "--batch-tokens",
            "128",
            "--dtype",
            "f32",
            "--threads",
            "1",
            "--eval-tokens",
            "256",
            "--sample-tokens",
            "4"};
  }
  Words train(const std::string& out, const std::string& steps = "4") const {
    return shape() + Words{"--data",
                           dir / "text.txt",
                           "--cache",
                           dir / "tokens",
                           "--tokenizer-kind",
                           "bytes",
                           "--save-every",
                           "2",
                           "--steps",
                           steps,
                           "--out",
                           out};
  }

  // The same command with other values: an option may stand there only once. `changes` are names, each with
  // one value.
  static Words with(Words args, const Words& changes) {
    for (std::size_t i = 0; i + 1 < changes.size(); i += 2) {
      const auto old = std::find(args.begin(), args.end(), changes[i]);
      if (old != args.end()) args.erase(old, old + 2);
    }
    return args + changes;
  }

  // The hash that the last line of a finished run carries.
  static std::string state_of(const Ended& ended) {
    const std::size_t at = ended.out.rfind("; state ");
    return at == std::string::npos ? "no state in: " + ended.out + ended.err : ended.out.substr(at + 8, 32);
  }

  static void expect_words(const std::string& text, const Words& words) {
    for (const std::string& word : words)
      EXPECT_NE(text.find(word), std::string::npos) << "'" << word << "' is missing in:\n" << text;
  }

  static void expect_success(const Ended& ended) { EXPECT_EQ(ended.code, 0) << ended.out << ended.err; }

  static void expect_refusal(const Ended& ended, int code, const Words& words) {
    EXPECT_EQ(ended.code, code) << ended.err;
    const std::size_t message = ended.err.rfind("qtrain: ");
    ASSERT_NE(message, std::string::npos) << ended.err;
    expect_words(ended.err, words);
    EXPECT_EQ(ended.err.find("internal error"), std::string::npos) << ended.err;
    const std::size_t hint = ended.err.rfind("\n        ");
    ASSERT_NE(hint, std::string::npos) << "no hint in:\n" << ended.err;
    EXPECT_GT(hint, message);
    EXPECT_GT(ended.err.size() - hint, 20u) << ended.err;
  }
};

}  // namespace qt::test

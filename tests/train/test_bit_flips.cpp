// Flipped bits in stored checkpoints: each is found before anything of the file is used, named with its file,
// and the checkpoint before is taken. FLIPS in the environment sets their number (`scripts/prove bit-flips`
// runs 10,000).
#include <cstdio>
#include <fstream>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/checkpoint.h"
#include "tests/support/mini_engine.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

void flip(const fs::path& path, std::uint64_t bit) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto at = static_cast<std::streamoff>(bit / 8);
  file.seekg(at);
  const int byte = file.get();
  file.seekp(at);
  file.put(static_cast<char>(byte ^ (1 << (bit % 8))));
  if (!file.flush()) throw std::runtime_error("cannot flip a bit of " + path.string());
}

class BitFlips : public ::testing::Test {
 protected:
  TempDir dir;
  fs::path run = dir / "run";
  std::unique_ptr<Engine> engine = mini_engine();
  CheckpointStore store{run.string(), 2};
  fs::path newest = run / checkpoint_name(4), before = run / checkpoint_name(2);
  std::string old_hash, new_hash;

  void SetUp() override {
    engine->init_weights(1);
    store.save(*engine, state_at(2));
    old_hash = state_hash(*engine);
    engine->init_weights(2);
    store.save(*engine, state_at(4));
    new_hash = state_hash(*engine);
    ASSERT_NE(old_hash, new_hash);
  }
};

TEST_F(BitFlips, EveryOneIsFoundNamedAndPassedOver) {
  std::mt19937_64 random(20251117);
  const std::vector<std::string> files = list_dir(newest);
  ASSERT_EQ(files.size(), 4u);
  const int wanted = repeats("FLIPS", 200);
  std::map<std::string, int> flips;
  int found = 0, accepted = 0;
  for (int i = 0; i < wanted; ++i) {
    // Every second time a file, else a byte of all: the small ones would hardly ever be hit.
    std::string name = files[random() % files.size()];
    if (i % 2 == 0) {
      std::uint64_t total = 0;
      for (const std::string& file : files) total += fs::file_size(newest / file);
      std::uint64_t byte = random() % total;
      for (const std::string& file : files) {
        name = file;
        if (byte < fs::file_size(newest / file)) break;
        byte -= fs::file_size(newest / file);
      }
    }
    const std::uint64_t bit = random() % (fs::file_size(newest / name) * 8);
    flip(newest / name, bit);
    std::string explanation;
    const std::string chosen = store.newest(explanation);
    const bool good = chosen == before.string() &&
                      explanation.starts_with(newest.filename().string() + ": " + name + ": ") &&
                      explanation.ends_with("\nusing " + before.filename().string());
    found += good ? 1 : 0;
    accepted += chosen == newest.string() ? 1 : 0;
    EXPECT_TRUE(good) << name << " bit " << bit << ": " << chosen << "\n" << explanation;
    ++flips[name];
    flip(newest / name, bit);
  }
  for (const auto& [name, n] : flips) std::printf("%-22s %6d bits flipped\n", name.c_str(), n);
  std::printf("%d of %d found, %d accepted\n", found, wanted, accepted);
  EXPECT_EQ(found, wanted);
  std::string explanation;
  EXPECT_EQ(store.newest(explanation), newest.string());
  EXPECT_EQ(explanation, "");
}

TEST_F(BitFlips, TheCheckpointTakenInsteadIsTheStateItWas) {
  flip(newest / "weights.safetensors", fs::file_size(newest / "weights.safetensors") * 4);
  std::string explanation;
  EXPECT_EQ(store.load(store.newest(explanation), *engine).step, 2);
  EXPECT_EQ(state_hash(*engine), old_hash);
}

TEST_F(BitFlips, InAllCheckpointsEndTheRunInsteadOfStartingItAnew) {
  for (const fs::path& checkpoint : {newest, before})
    flip(checkpoint / "state.safetensors", fs::file_size(checkpoint / "state.safetensors") * 8 - 1);
  std::string explanation;
  const auto text = message_of<DataError>([&] { store.newest(explanation); });
  for (const fs::path& checkpoint : {newest, before}) {
    EXPECT_NE(text.find(checkpoint.filename().string() + ": state.safetensors: hash differs"),
              std::string::npos)
        << text;
  }
}

// The control: sizes alone see none of them, and the flipped state would be trained on.
TEST_F(BitFlips, AreMissedByALookAtTheSizes) {
  std::mt19937_64 random(5);
  int missed = 0;
  for (int i = 0; i < 50; ++i) {
    const std::string name = i % 2 == 0 ? "weights.safetensors" : "state.safetensors";
    // In the second half of the file there are only tensors.
    const std::uint64_t bits = fs::file_size(newest / name) * 8, bit = bits / 2 + random() % (bits / 2);
    flip(newest / name, bit);
    const CheckpointChoice choice = choose_checkpoint(run, VerifyDepth::sizes);
    missed += choice.checkpoint && choice.checkpoint->path == newest ? 1 : 0;
    flip(newest / name, bit);
  }
  EXPECT_EQ(missed, 50);
  // One that leaves a finite number, and is loaded.
  const std::uint64_t bits = fs::file_size(newest / "weights.safetensors") * 8;
  flip(newest / "weights.safetensors", bits - 32);
  store.load(newest.string(), *engine);
  EXPECT_NE(state_hash(*engine), new_hash);
}

}  // namespace
}  // namespace qt::test

// TensorBoard's event files, with a reader of the test's own; and that log.jsonl and they say the same.
#include <sys/resource.h>

#include <algorithm>
#include <csignal>

#include <gtest/gtest.h>

#include "src/train/event_file.h"
#include "src/train/run_log_writer.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"
#include "tests/support/event_reader.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;
using Curve = std::map<std::int64_t, float>;

// Contents in the order of the names, which is the order in which they are read.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> names, contents;
  if (!fs::is_directory(folder)) return contents;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().string());
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    EXPECT_NE(name.find("tfevents"), std::string::npos) << "TensorBoard finds files by this word: " << name;
    contents.push_back(read_text(name));
  }
  return contents;
}

void write_steps(EventFile& file, std::int64_t first, std::int64_t last, double wall_time = 1000) {
  for (std::int64_t step = first; step <= last; ++step) {
    const Scalar scalar{"train/loss", 1.0 / static_cast<double>(step)};
    file.write(wall_time, step, std::span(&scalar, 1));
  }
}

// Files above so many bytes cannot be written while it lives, as on a full disk.
class SmallFiles {
 public:
  explicit SmallFiles(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit small{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
  }
  ~SmallFiles() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  SmallFiles(const SmallFiles&) = delete;
  SmallFiles& operator=(const SmallFiles&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST(EventCheck, IsTheMaskedCrc32cOfThePublishedVector) {
  EXPECT_EQ(crc32c_bit_by_bit("123456789"), 0xE3069283u);
  EXPECT_EQ(masked_crc32c("123456789"), ((0xE3069283u >> 15) | (0xE3069283u << 17)) + 0xA282EAD8u);
}

class EventFiles : public ::testing::Test {
 protected:
  TempDir dir;
  std::string folder = dir / "tensorboard";
};

TEST_F(EventFiles, DecodeWithAnIndependentReader) {
  EventFile file(folder, 7);
  EXPECT_FALSE(fs::exists(folder)) << "nothing to say, nothing made";
  const Scalar scalars[] = {{"train/loss", 2.5}, {"power/watts", 181.25}};
  file.write(1763761234.5, 7, scalars);
  file.write(1763761235.5, 300, std::span(scalars, 1));
  file.write(1763761236.5, 301, {});
  const std::vector<std::string> files = files_in(folder);
  ASSERT_EQ(files.size(), 1u);
  const ReadEvents read = EventReader::read(files[0]);
  EXPECT_FALSE(read.torn);
  ASSERT_EQ(read.events.size(), 4u);
  EXPECT_EQ(read.events[0].file_version, "brain.Event:2");
  EXPECT_TRUE(read.events[1].session_start);
  EXPECT_EQ(read.events[1].step, 7);
  EXPECT_EQ(read.events[2].wall_time, 1763761234.5);
  EXPECT_EQ(read.events[2].step, 7);
  const std::vector<std::pair<std::string, float>> both{{"train/loss", 2.5f}, {"power/watts", 181.25f}};
  EXPECT_EQ(read.events[2].scalars, both);
  EXPECT_EQ(read.events[3].step, 300);
  EXPECT_EQ(read.events[3].scalars.size(), 1u);
}

TEST_F(EventFiles, AreReadUpToATornEnd) {
  {
    EventFile file(folder, 1);
    write_steps(file, 1, 3);
  }
  const std::string whole = files_in(folder).at(0);
  std::size_t most = 0;
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const ReadEvents read = EventReader::read(whole.substr(0, bytes));
    EXPECT_LT(read.events.size(), 5u);
    EXPECT_GE(read.events.size(), most);
    most = read.events.size();
  }
  EXPECT_EQ(most, 4u);
  // And the reader does not take anything for a record.
  int noticed = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] ^= 0x04;
    try {
      noticed += EventReader::read(damaged).torn ? 1 : 0;
    } catch (const std::runtime_error&) {
      ++noticed;
    }
  }
  EXPECT_EQ(noticed, static_cast<int>(whole.size()));
}

TEST_F(EventFiles, OfALaterSessionTakeThePlaceOfWhatWasLost) {
  {
    EventFile file(folder, 1);
    write_steps(file, 1, 9, 200'000);
  }
  // Killed after step 9, continued from step 5; and the clock has been set back by a day.
  {
    EventFile file(folder, 6);
    write_steps(file, 6, 7, 113'600);
  }
  {
    EventFile file(folder, 8);
    write_steps(file, 8, 8, 300'000);
  }
  const std::vector<std::string> files = files_in(folder);
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(EventReader::read(files[1]).events[1].step, 6) << "names sort in the order of the sessions";
  const Curve loss = EventReader::shown(files)["train/loss"];
  EXPECT_EQ(loss.size(), 8u);
  EXPECT_EQ(loss.rbegin()->first, 8);
  // Without the mark the steps that were lost would be shown.
  EXPECT_EQ(EventReader::shown({files[0], files[2]})["train/loss"].size(), 8u);
  EXPECT_EQ(EventReader::shown({files[0]})["train/loss"].size(), 9u);
}

TEST_F(EventFiles, StopNothingWhereTheDiskIsFull) {
  EventFile file(folder, 1);
  write_steps(file, 1, 1);
  const std::size_t whole = files_in(folder).at(0).size();
  {
    const SmallFiles full(whole + 20);
    write_steps(file, 2, 4);
  }
  EXPECT_EQ(files_in(folder).at(0).size(), whole) << "half a record would hide what follows";
  write_steps(file, 5, 6);
  EXPECT_EQ(EventReader::shown(files_in(folder))["train/loss"], (Curve{{1, 1.0f}, {5, 0.2f}, {6, 1.0f / 6}}));
}

TEST_F(EventFiles, BeginWithTheirVersionWhenTheDiskWasFullAtFirst) {
  EventFile file(folder, 1);
  {
    const SmallFiles full(10);
    write_steps(file, 1, 2);
  }
  write_steps(file, 3, 3);
  const ReadEvents read = EventReader::read(files_in(folder).at(0));
  ASSERT_EQ(read.events.size(), 3u);
  EXPECT_EQ(read.events[0].file_version, "brain.Event:2");
  EXPECT_EQ(read.events[2].step, 3);
}

TEST_F(EventFiles, StopNothingWhereTheirFolderCannotBe) {
  write_text(folder, "in the way");
  RunLogWriter log(dir.path().string(), true, 1);
  log.write(JsonRecord().add("kind", "step").add("step", 1).add("loss", 2.0));
  EXPECT_EQ(read_text(dir / "log.jsonl"), "{\"kind\":\"step\",\"step\":1,\"loss\":2}\n");
  EXPECT_EQ(read_text(folder), "in the way");
}

TEST_F(EventFiles, HoldWhatIsKnownUnderFixedNames) {
  RunLogWriter log(dir.path().string(), true, 1);
  log.write(JsonRecord().add("kind", "start").add("step", 1).add("unix_s", 50.0));
  log.write(JsonRecord()
                .add("kind", "step")
                .add("step", 1)
                .add("loss", 2.0)
                .add("norm", 0.5)
                .add("lr", 1e-3)
                .add("seconds", 2.0)
                .add("tokens_per_s", 512.0)
                .add("mfu", 0.25)
                .add("watts", 200.0)
                .add("unix_s", 60.0));
  log.write(JsonRecord().add("kind", "eval").add("step", 1).add("val_loss", 3.0).add("val_bpb", 1.5));
  // Not finite, and not measured: neither is a zero.
  log.write(JsonRecord().add("kind", "step").add("step", 2).add("loss", std::nan("")).add("norm", 0.75));
  log.write(JsonRecord().add("kind", "sample").add("step", 2).add("text", "train/loss"));
  auto curves = EventReader::shown(files_in(folder));
  std::vector<std::string> tags;
  for (const auto& [tag, curve] : curves) tags.push_back(tag);
  EXPECT_EQ(tags, (std::vector<std::string>{"power/watts", "train/loss", "train/lr", "train/mfu",
                                            "train/norm", "train/tokens_per_s", "val/bpb", "val/loss"}));
  EXPECT_EQ(curves["train/loss"], (Curve{{1, 2.0f}}));
  EXPECT_EQ(curves["train/norm"], (Curve{{1, 0.5f}, {2, 0.75f}}));
  EXPECT_EQ(curves["val/bpb"], (Curve{{1, 1.5f}}));
  EXPECT_EQ(EventReader::read(files_in(folder).at(0)).events.at(2).wall_time, 60.0);
}

TEST_F(EventFiles, GoBackWithARestore) {
  RunLogWriter log(dir.path().string(), true, 1);
  const auto step = [&](int number, double loss) {
    log.write(JsonRecord().add("kind", "step").add("step", number).add("loss", loss));
  };
  for (int i = 1; i <= 6; ++i) step(i, 1);
  log.write(JsonRecord().add("kind", "restore").add("step", 3).add("why", "not finite"));
  EXPECT_EQ(EventReader::shown(files_in(folder))["train/loss"].size(), 6u) << "with the next step";
  step(4, 2);
  EXPECT_EQ(EventReader::shown(files_in(folder))["train/loss"],
            (Curve{{1, 1.0f}, {2, 1.0f}, {3, 1.0f}, {4, 2.0f}}));
}

TEST_F(EventFiles, OfAWholeRunSayWhatItsLogSays) {
  const TinyData data(dir.path());
  const TokenBatches batches = data.batches(32);
  const EvalBatches validation = data.validation(32);
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = tiny_trainer_options(dir / "run", 6, 1000);
  o.eval_every = 2;
  {
    LoggedTrainer trainer(*engine, batches, &validation, data.tokenizer(), o, state, true);
    trainer.after_step = [](const RunState& now, const StepStats&) {
      if (now.step == 3) request_stop();
    };
    EXPECT_THROW(trainer.run(), StopRequested);
    clear_stop_request();
  }
  LoggedTrainer(*engine, batches, &validation, data.tokenizer(), o, state, true).run();

  Curve loss, bpb;
  std::istringstream lines(read_text(dir / "run/log.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const Json record = parse_json(line, "log.jsonl");
    const auto step = record["step"].get<std::int64_t>();
    if (record["kind"] == "step") loss[step] = record["loss"].get<float>();
    if (record["kind"] == "eval") bpb[step] = record["val_bpb"].get<float>();
  }
  EXPECT_EQ(loss.size(), 6u);
  EXPECT_EQ(bpb.size(), 3u);
  const std::vector<std::string> files = files_in(dir / "run/tensorboard");
  EXPECT_EQ(files.size(), 2u) << "one for each session";
  auto curves = EventReader::shown(files);
  EXPECT_EQ(curves["train/loss"], loss);
  EXPECT_EQ(curves["val/bpb"], bpb);
}

}  // namespace
}  // namespace qt::test

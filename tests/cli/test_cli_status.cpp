// `qtrain status` and `qtrain report` as a person meets them: on a run that is going on, that has ended, that
// was killed; and on every kind of folder that holds none.
#include <signal.h>

#include <chrono>
#include <thread>

#include <nlohmann/json.hpp>

#include "tests/support/cli.h"
#include "tests/support/log_writer.h"

namespace qt::test {
namespace {

using nlohmann::json;

class CliStatus : public Cli {
 protected:
  Ended status(const std::string& folder, const Words& more = {}) const {
    return run(Words{"status", folder} + more);
  }
  json state_of_run(const std::string& folder) const {
    const Ended ended = status(folder, {"--json"});
    expect_success(ended);
    EXPECT_EQ(std::count(ended.out.begin(), ended.out.end(), '\n'), 1) << "one line";
    return json::parse(ended.out);
  }
  // A folder with this log and nothing else.
  std::string folder_with(const std::string& name, const std::string& log) const {
    std::filesystem::create_directory(dir / name);
    write_text(dir / (name + "/log.jsonl"), log);
    return dir / name;
  }
};

TEST_F(CliStatus, AnswersForARunThatHasEnded) {
  expect_success(run(with(train(dir / "run", "8"), {"--device", "cpu"})));
  const Ended text = status(dir / "run");
  expect_success(text);
  expect_words(text.out, {"finished", "8 of 8 (100.0 %)", "bits per byte", "at step 8", "nothing", "saved",
                          "0 restarts", " free; a checkpoint takes"});
  const json parsed = state_of_run(dir / "run");
  EXPECT_EQ(parsed["state"], "finished");
  EXPECT_EQ(parsed["step"], 8);
  EXPECT_EQ(parsed["saved_step"], 8);
  EXPECT_TRUE(parsed["pid"].is_null());
  EXPECT_GT(parsed["val_bpb"].get<double>(), 0);
  EXPECT_GT(parsed["checkpoint_bytes"].get<std::int64_t>(), 1000);
  EXPECT_GT(parsed["disk_free_bytes"].get<std::int64_t>(), 0);
  // The folder by its option, behind other words, and where nothing is named.
  for (const Words& args :
       {Words{"status", "--json", "--out", dir / "run"}, Words{"status", "--json", dir / "run"}})
    EXPECT_EQ(json::parse(run(args).out)["trained_seconds"], parsed["trained_seconds"]);
  expect_refusal(run({"status"}), 2, {"there is no folder 'runs/default'"});
}

TEST_F(CliStatus, AnswersWhileARunIsGoingOnAndAfterItWasKilled) {
  const Words args = with(train(dir / "run", "100000"), {"--device", "cpu", "--save-every", "100000"});
  const pid_t pid =
      start_process(Words{QTRAIN_PROGRAM} + args, {.out = dir / "long.out", .err = "", .folder = ""});
  json running;
  for (int i = 0; i < 400; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const Ended ended = status(dir / "run", {"--json"});
    if (ended.code == 2) continue;  // it has not begun
    ASSERT_EQ(ended.code, 0) << ended.err;
    running = json::parse(ended.out);
    if (running["step"].get<std::int64_t>() >= 10) break;
  }
  const Ended words = status(dir / "run");
  const Ended page = run({"report", dir / "run"});
  kill(pid, SIGKILL);
  finish_process(pid);
  EXPECT_EQ(running["state"], "running");
  EXPECT_EQ(running["pid"], pid);
  EXPECT_TRUE(running["saved_step"].is_null()) << "no checkpoint is needed";
  EXPECT_GT(running["tokens_per_s"].get<double>(), 0);
  expect_success(words);
  expect_words(words.out, {"running (process " + std::to_string(pid) + ")", "no checkpoint yet"});
  expect_success(page);
  const json killed = state_of_run(dir / "run");
  EXPECT_EQ(killed["state"], "interrupted");
  EXPECT_GE(killed["step"].get<std::int64_t>(), running["step"].get<std::int64_t>());
  expect_words(status(dir / "run").out, {"ended without a word"});
}

TEST_F(CliStatus, WritesAPageThatStandsAlone) {
  expect_success(run(with(train(dir / "run", "6"), {"--device", "cpu", "--prompt", "<b>the"})));
  const Ended made = run({"report", dir / "run"});
  expect_success(made);
  expect_words(made.out, {"wrote ", "report.html"});
  const std::string page = read_text(dir / "run/report.html");
  expect_words(page, {"<!doctype html>", "run · qtrain report", "Bits per byte", "&lt;b&gt;the", "</html>"});
  EXPECT_EQ(page.find("<b>the"), std::string::npos);
  // Elsewhere, and over an older one.
  write_text(dir / "there.html", "old");
  expect_success(run({"report", "--to", dir / "there.html", dir / "run"}));
  EXPECT_NE(read_text(dir / "there.html").find("</html>"), std::string::npos);
  expect_success(run({"report", "--out", dir / "run", "--to=" + dir / "here.html"}));
  EXPECT_TRUE(std::filesystem::exists(dir / "here.html"));
}

TEST_F(CliStatus, KeepsEventFilesUnlessToldNotTo) {
  const auto files = [&](const std::string& name) {
    int n = 0;
    const std::filesystem::path folder = dir / (name + "/tensorboard");
    if (!std::filesystem::exists(folder)) return n;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) n += entry.file_size() > 0 ? 1 : 0;
    return n;
  };
  expect_success(run(train(dir / "with", "2")));
  expect_success(run(train(dir / "with", "4")));
  EXPECT_EQ(files("with"), 2) << "one for each session";
  expect_success(run(train(dir / "without", "2") + Words{"--no-tensorboard"}));
  EXPECT_EQ(files("without"), 0);
  EXPECT_EQ(read_text(dir / "without/log.jsonl").empty(), false);
  // A run may be continued without what it began with.
  expect_success(run(train(dir / "with", "6") + Words{"--no-tensorboard"}));
  EXPECT_EQ(files("with"), 2);
}

TEST_F(CliStatus, RefusesWhatIsNoRun) {
  std::filesystem::create_directory(dir / "empty");
  write_text(dir / "file", "text");
  std::filesystem::create_directories(dir / "folder/log.jsonl");
  struct Refusal {
    std::string folder;
    int code;
    Words words;
  };
  const std::string junk(
      "\x7f"
      "ELF\x02\x01\x01\0\0\0",
      10);
  const std::string good = step_lines(1, 3);
  const Refusal cases[] = {
      {dir / "missing", 2, {"there is no folder", "missing", "qtrain status runs/books"}},
      {dir / "empty", 2, {"there is no run in", "empty", "neither a log nor a checkpoint"}},
      {dir / "file", 2, {"is no folder", "file"}},
      {dir / "folder", 4, {"log.jsonl' is a folder"}},
      {folder_with("junk", junk), 4, {"log.jsonl:1", "not a record"}},
      {folder_with("junk lines", junk + "\n" + junk + "\n"), 4, {"log.jsonl:1"}},
      {folder_with("damaged", good + "{\"kind\":\"step\",\"st\n" + good),
       4,
       {"log.jsonl:4", "not valid JSON"}},
      {folder_with("wrong kind", good + "{\"kind\":7,\"step\":4}\n"), 4, {"log.jsonl:4", "'kind'"}},
      {folder_with("wrong step", good + "{\"kind\":\"step\",\"step\":\"4\"}\n"),
       4,
       {"log.jsonl:4", "'step'"}},
      {folder_with("head cut off", good.substr(20)), 4, {"log.jsonl:1"}},
  };
  for (const Refusal& c : cases) {
    for (const std::string verb : {"status", "report"}) {
      SCOPED_TRACE(verb + " " + c.folder);
      const Ended ended = run({verb, c.folder});
      expect_refusal(ended, c.code, c.words);
      EXPECT_TRUE(ended.out.empty()) << ended.out;
      EXPECT_FALSE(std::filesystem::exists(c.folder + "/report.html"));
    }
  }
}

TEST_F(CliStatus, AnswersForLogsThatAreEmptyOrCutShort) {
  const std::string good = start_line(0, 10) + step_lines(1, 3);
  for (const auto& [name, log] : {std::pair<std::string, std::string>{"empty", ""},
                                  {"torn", good.substr(0, good.size() - 30)},
                                  {"only torn", good.substr(0, 25)},
                                  {"zeros", good + std::string(4096, '\0')}}) {
    SCOPED_TRACE(name);
    const std::string folder = folder_with(name, log);
    const Ended text = status(folder);
    expect_success(text);
    EXPECT_EQ(text.out.find("torn") != std::string::npos, name != "empty") << text.out;
    EXPECT_EQ(state_of_run(folder)["state"], "interrupted");
    expect_success(run({"report", folder}));
    EXPECT_EQ(read_text(folder + "/log.jsonl"), log) << "nothing is repaired by looking";
  }
  EXPECT_EQ(state_of_run(dir / "torn")["step"], 2);
}

TEST_F(CliStatus, RefusesWrongWords) {
  const std::string folder = folder_with("run", step_lines(1, 3));
  write_text(dir / "file", "text");
  std::filesystem::create_directory(dir / "folder");
  struct Refusal {
    Words args;
    int code;
    Words words;
  };
  const Refusal cases[] = {
      {{"status", folder, folder}, 2, {"one word too many", "`qtrain status RUN`"}},
      {{"status", folder, "--out", dir / "other"}, 2, {"both name a run"}},
      {{"status", ""}, 2, {"the name of the RUN is empty"}},
      {{"status", folder, "--jsn"}, 2, {"'jsn'", "did you mean --json?"}},
      {{"status", folder, "--json=yes"}, 2, {"--json takes no value"}},
      {{"status", folder, "--json", "--json"}, 2, {"--json", "twice"}},
      {{"status", "--run", folder}, 2, {"'run'"}},
      {{"report", folder, "--json"}, 2, {"--json is not for `qtrain report`"}},
      {{"report", folder, "--to"}, 2, {"--to needs a value"}},
      {{"report", folder, "--to="}, 2, {"--to needs a value"}},
      {{"report", folder, "--to", dir / "folder"}, 2, {"cannot take the place of", "folder"}},
      {{"report", folder, "--to", "/dev/null"}, 2, {"cannot take the place of", "/dev/null"}},
      {{"report", folder, "--to", dir / "nowhere/report.html"}, 7, {"cannot create", "nowhere/report.html"}},
      {{"report", folder, "--to", dir / "file/report.html"}, 7, {"cannot create", "file/report.html"}},
      {{"stats", folder}, 2, {"did you mean `qtrain status`?"}},
      {{"train", folder}, 2, {folder}},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(c.args[0] + " " + c.args.back());
    const Ended ended = run(c.args);
    expect_refusal(ended, c.code, c.words);
    EXPECT_TRUE(ended.out.empty()) << ended.out;
  }
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  expect_words(run({"--help"}).out, {"[qtrain status]", "[qtrain report]", "  RUN ", "--to FILE"});
}

// Where even the temporary file cannot be written, an older report stays.
TEST_F(CliStatus, LeavesAnOldReportWhereTheDiskIsFull) {
  const std::string folder = folder_with("run", step_lines(1, 3));
  write_text(folder + "/report.html", "old");
  const Ended ended = run({"report", folder, "--to", "/dev/full/report.html"});
  expect_refusal(ended, 7, {"/dev/full/report.html"});
  EXPECT_EQ(read_text(folder + "/report.html"), "old");
}

}  // namespace
}  // namespace qt::test

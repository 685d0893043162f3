#include "src/cli/run_data.h"

#include <unistd.h>

#include <cstdio>
#include <optional>

#include "src/core/log.h"
#include "src/core/units.h"
#include "src/io/file.h"
#include "src/io/hash.h"
#include "src/io/run_folder.h"
#include "src/train/stop.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultData = "data";
constexpr std::int64_t kDefaultBpeVocab = 4096;

// What --data means when it is not given: a folder `data`, if there is one.
std::vector<std::string> data_inputs(const Options& o) {
  if (!o.data.empty()) return o.data;
  if (fs::exists(kDefaultData)) return {kDefaultData};
  throw ConfigError(
      "no training data: --data is not given and there is no folder 'data'",
      "for a first run type `scripts/quickstart`; for your own text `qtrain --data book.txt` (also .jsonl, "
      ".gz, .zst, or a "
      "folder of them); to tokenize once and keep the shards `qtrain tokenize --data corpus/ --cache data`");
}

DataSpec data_spec(const Options& o) {
  DataSpec spec;
  spec.inputs = data_inputs(o);
  spec.val_inputs = o.val_data;
  spec.val_fraction = o.val_fraction;
  spec.tokenizer.kind = o.tokenizer_kind;
  spec.tokenizer.vocab_size = o.vocab_size > 0 ? o.vocab_size : kDefaultBpeVocab;
  spec.tokenizer.pattern = o.split_pattern;
  spec.tokenizer_file = o.tokenizer;
  if (!o.cache.empty()) {
    spec.out_dir = o.cache;
  } else if (spec.inputs.front() == "-") {
    throw ConfigError("text from standard input needs a place for its tokens", "add --cache FOLDER");
  } else {
    spec.out_dir = fs::path(spec.inputs.front()).lexically_normal().string() + ".tokens";
  }
  return spec;
}

// The one line of a long preparation, redrawn on a terminal and left out elsewhere.
DataHooks data_hooks(bool quiet) {
  DataHooks hooks;
  hooks.stop = [] { return stop_requested(); };
  if (quiet || isatty(STDERR_FILENO) == 0) return hooks;
  hooks.progress = [](const DataProgress& p) {
    const std::string total = p.total_bytes > 0 ? " of " + format_bytes(p.total_bytes) : "";
    const std::string line = fmt::format("\r\x1b[K  {}: {}{}, {:.1f} MB/s", p.phase,
                                         format_bytes(p.done_bytes), total, p.mb_per_s);
    std::fputs(line.c_str(), stderr);
    if (p.total_bytes > 0 && p.done_bytes >= p.total_bytes) std::fputs("\r\x1b[K", stderr);
  };
  return hooks;
}

// Token shards as they are, with the tokenizer that belongs to them.
PreparedData open_shard_data(const Options& o, const std::string& path) {
  PreparedData data = open_dataset(path);
  choose_tokenizer(data, o.tokenizer, o.vocab_size);
  if (!o.val_data.empty()) data.val_shards.assign(o.val_data.begin(), o.val_data.end());
  return data;
}

void require_there(const char* option, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (path == "-" || fs::exists(path)) continue;
    throw ConfigError(fmt::format("{} '{}': no such file or folder", option, path),
                      fmt::format("check the name; this was started in '{}'", fs::current_path().string()));
  }
}

// Shards and text are different worlds: a .bin file among text would be read as prose.
void require_one_kind(const Options& o, const std::vector<std::string>& inputs) {
  const bool shards = is_shard_path(inputs.front());
  if (shards && inputs.size() > 1) {
    throw ConfigError("--data takes one folder of token shards, or one shard",
                      "put them in one folder as train_*.bin and val_*.bin");
  }
  for (const std::string& input : inputs) {
    if (is_shard_path(input) != shards) {
      throw ConfigError(fmt::format("--data '{}' holds token shards, '{}' does not",
                                    shards ? inputs.front() : input, shards ? input : inputs.front()),
                        "name either text or one folder of shards");
    }
  }
  for (const std::string& input : o.val_data) {
    if (is_shard_path(input) == shards && !(shards && fs::is_directory(input))) continue;
    throw ConfigError(fmt::format("--val-data '{}' must be {}, as --data is", input,
                                  shards ? "a token shard (.bin)" : "text"),
                      shards ? "name .bin files, or put them into the folder of --data as val_*.bin"
                             : "name text files or folders of them");
  }
}

}  // namespace

PreparedData load_data(const Options& o) {
  check_data_options(o);
  const DataSpec spec = data_spec(o);
  if (is_shard_path(spec.inputs.front())) return open_shard_data(o, spec.inputs.front());
  return prepare_data(spec, data_hooks(o.quiet));
}

PreparedData tokenize_data(const Options& o, fs::path& folder) {
  check_data_options(o);
  const DataSpec spec = data_spec(o);
  folder = spec.out_dir;
  return prepare_data(spec, data_hooks(o.quiet));
}

void check_data_options(const Options& o) {
  const DataSpec spec = data_spec(o);
  require_there("--data", spec.inputs);
  require_there("--val-data", o.val_data);
  if (!o.tokenizer.empty()) require_there("--tokenizer", {o.tokenizer});
  require_one_kind(o, spec.inputs);
}

std::int64_t expected_vocab_size(const Options& o) {
  if (o.vocab_size > 0) return o.vocab_size;
  if (!o.tokenizer.empty()) {
    require_there("--tokenizer", {o.tokenizer});
    return Tokenizer::load(o.tokenizer).vocab_size();
  }
  if (o.data.empty() && !fs::exists(kDefaultData)) return 0;
  const std::string first = data_inputs(o).front();
  if (first != "-" && !fs::exists(first)) {
    log_warning("--data '{}' is not there: planned for the model's own vocabulary", first);
    return 0;
  }
  if (is_shard_path(first)) {
    const PreparedData data = open_dataset(first);
    return data.tokenizer ? data.tokenizer->vocab_size() : 0;
  }
  switch (o.tokenizer_kind) {
    case TokenizerKind::bpe: return kDefaultBpeVocab;
    case TokenizerKind::bytes: return Tokenizer::make_bytes().vocab_size();
    case TokenizerKind::chars:
    case TokenizerKind::ids: break;  // the text has to be read
  }
  return 0;
}

std::string data_hash(const std::vector<fs::path>& shards) {
  Xxh3 hash;
  for (const fs::path& shard : shards) {
    const std::optional<ShardInfo> side = read_shard_side(shard);
    hash.update(bytes_of(side ? side->xxh3_128 : InputFile(shard).hash_hex()));
  }
  return hash.hex();
}

void require_vocabulary(const Tokenizer& tokenizer, const Options& o) {
  if (o.vocab_size == 0 || o.vocab_size >= tokenizer.vocab_size()) return;
  throw ConfigError(fmt::format("--vocab-size {} is smaller than the tokenizer's {} tokens", o.vocab_size,
                                tokenizer.vocab_size()),
                    "leave it out: the model takes the tokenizer's");
}

std::unique_ptr<EvalBatches> open_validation(const PreparedData& data, const Options& o,
                                             std::int64_t seq_len) {
  if (data.val_shards.empty()) return nullptr;
  return std::make_unique<EvalBatches>(TokenStream(open_shards(data.val_shards, *data.tokenizer)), seq_len,
                                       data.tokenizer->token_bytes_table(), o.eval_tokens);
}

Options stored_options(const RunState& state, const std::string& origin) {
  Options options;
  for (const OptionSpec& spec : option_table()) {
    const auto it = state.options.find(spec.name);
    if (it != state.options.end()) set_option(options, spec, option_values(spec, it->second, origin), origin);
  }
  return options;
}

// What the training tokenized is used as it lies in the cache where it is still that; anything else is cut
// with the run's tokenizer.
PreparedData load_eval_data(const LoadedOptions& loaded, const RunState& state) {
  Options o = loaded.options;
  const Options trained = stored_options(state, o.out);
  if (!loaded.given("data")) o.data = trained.data;
  if (o.data == trained.data) {
    if (!loaded.given("val-data")) o.val_data = trained.val_data;
    if (!loaded.given("val-fraction")) o.val_fraction = trained.val_fraction;
    if (!loaded.given("cache")) o.cache = trained.cache;
    const DataSpec spec = data_spec(o);
    if (!is_shard_path(spec.inputs.front()) && o.val_data == trained.val_data &&
        o.val_fraction == trained.val_fraction && is_shard_path(spec.out_dir)) {
      PreparedData made = open_dataset(spec.out_dir);
      const bool same = made.tokenizer && made.tokenizer->hash() == state.vocab_hash &&
                        data_hash(made.train_shards) == state.data_hash;
      if (same) return made;
    }
  }
  o.tokenizer = RunFolder(o.out).tokenizer().string();
  // A folder of its own: preparing other data in the training run's cache would replace that run's tokens.
  if (!loaded.given("cache")) o.cache = (fs::path(o.out) / "eval.tokens").string();
  return load_data(o);
}

}  // namespace qt

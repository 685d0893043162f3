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

void require_there(const char* option, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (path == "-" || fs::exists(path)) continue;
    throw ConfigError(fmt::format("{} '{}': no such file or folder", option, path),
                      fmt::format("check the name; this was started in '{}'", fs::current_path().string()));
  }
}

// Shards and text are different worlds: a .bin file among text would be read as prose.
void require_one_kind(const std::vector<std::string>& inputs, const std::vector<std::string>& val_inputs) {
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
  for (const std::string& input : val_inputs) {
    if (is_shard_path(input) == shards && !(shards && fs::is_directory(input))) continue;
    throw ConfigError(fmt::format("--val-data '{}' must be {}, as --data is", input,
                                  shards ? "a token shard (.bin)" : "text"),
                      shards ? "name .bin files, or put them into the folder of --data as val_*.bin"
                             : "name text files or folders of them");
  }
}

}  // namespace

RunData::RunData(const Options& o) : cache_(o.cache), vocab_size_(o.vocab_size), quiet_(o.quiet) {
  spec_.inputs = o.data;
  if (spec_.inputs.empty() && fs::exists(kDefaultData)) spec_.inputs = {kDefaultData};
  spec_.val_inputs = o.val_data;
  spec_.val_fraction = o.val_fraction;
  spec_.tokenizer.kind = o.tokenizer_kind;
  spec_.tokenizer.vocab_size = o.vocab_size > 0 ? o.vocab_size : kDefaultBpeVocab;
  spec_.tokenizer.pattern = o.split_pattern;
  spec_.tokenizer_file = o.tokenizer;
}

const std::string& RunData::first_input() const {
  if (!spec_.inputs.empty()) return spec_.inputs.front();
  throw ConfigError(
      "no training data: --data is not given and there is no folder 'data'",
      "for a first run type `scripts/quickstart`; for your own text `qtrain --data book.txt` (also .jsonl, "
      ".gz, .zst, or a "
      "folder of them); to tokenize once and keep the shards `qtrain tokenize --data corpus/ --cache data`");
}

bool RunData::is_shards() const { return is_shard_path(first_input()); }

fs::path RunData::cache() const {
  if (!cache_.empty()) return cache_;
  if (first_input() == "-")
    throw ConfigError("text from standard input needs a place for its tokens", "add --cache FOLDER");
  return fs::path(first_input()).lexically_normal().string() + ".tokens";
}

void RunData::check() const {
  first_input();
  cache();
  require_there("--data", spec_.inputs);
  require_there("--val-data", spec_.val_inputs);
  if (!spec_.tokenizer_file.empty()) require_there("--tokenizer", {spec_.tokenizer_file.string()});
  require_one_kind(spec_.inputs, spec_.val_inputs);
}

PreparedData RunData::load() const {
  if (spec_.inputs.empty() || !is_shards()) return tokenize();
  check();
  // Token shards as they are, with the tokenizer that belongs to them.
  PreparedData data = open_dataset(first_input());
  choose_tokenizer(data, spec_.tokenizer_file.string(), vocab_size_);
  if (!spec_.val_inputs.empty()) data.val_shards.assign(spec_.val_inputs.begin(), spec_.val_inputs.end());
  return data;
}

PreparedData RunData::tokenize() const {
  check();
  DataSpec spec = spec_;
  spec.out_dir = cache();
  return prepare_data(spec, data_hooks(quiet_));
}

std::int64_t RunData::expected_vocab_size() const {
  if (vocab_size_ > 0) return vocab_size_;
  if (!spec_.tokenizer_file.empty()) {
    require_there("--tokenizer", {spec_.tokenizer_file.string()});
    return Tokenizer::load(spec_.tokenizer_file).vocab_size();
  }
  if (spec_.inputs.empty()) return 0;
  const std::string& first = first_input();
  if (first != "-" && !fs::exists(first)) {
    log_warning("--data '{}' is not there: planned for the model's own vocabulary", first);
    return 0;
  }
  if (is_shards()) {
    const PreparedData data = open_dataset(first);
    return data.tokenizer ? data.tokenizer->vocab_size() : 0;
  }
  switch (spec_.tokenizer.kind) {
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

void RunData::require_vocabulary(const Tokenizer& tokenizer) const {
  if (vocab_size_ == 0 || vocab_size_ >= tokenizer.vocab_size()) return;
  throw ConfigError(fmt::format("--vocab-size {} is smaller than the tokenizer's {} tokens", vocab_size_,
                                tokenizer.vocab_size()),
                    "leave it out: the model takes the tokenizer's");
}

std::unique_ptr<EvalBatches> open_validation(const PreparedData& data, std::int64_t eval_tokens,
                                             std::int64_t seq_len) {
  if (data.val_shards.empty()) return nullptr;
  return std::make_unique<EvalBatches>(TokenStream(open_shards(data.val_shards, *data.tokenizer)), seq_len,
                                       data.tokenizer->token_bytes_table(), eval_tokens);
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
    const RunData named(o);
    const fs::path cache = named.cache();
    if (!named.is_shards() && o.val_data == trained.val_data && o.val_fraction == trained.val_fraction &&
        is_shard_path(cache)) {
      PreparedData made = open_dataset(cache);
      const bool same = made.tokenizer && made.tokenizer->hash() == state.vocab_hash &&
                        data_hash(made.train_shards) == state.data_hash;
      if (same) return made;
    }
  }
  o.tokenizer = RunFolder(o.out).tokenizer().string();
  // A folder of its own: preparing other data in the training run's cache would replace that run's tokens.
  if (!loaded.given("cache")) o.cache = (fs::path(o.out) / "eval.tokens").string();
  return RunData(o).load();
}

}  // namespace qt

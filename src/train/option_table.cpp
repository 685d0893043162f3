#include "src/train/option_table.h"

#include <unistd.h>  // environ

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <system_error>

#include <boost/program_options.hpp>

#include "src/core/error.h"
#include "src/core/suggest.h"
#include "src/core/units.h"

namespace qt {

namespace {

using K = OptionKind;
using O = Options;

constexpr OptionSpec kTable[] = {
    {"model", "model", K::text, &O::model, "architecture: d2, d4 ... d34 (nanochat)"},
    {"model", "vocab-size", K::count, &O::vocab_size,
     "vocabulary; 0: the tokenizer's (4096 where one is made)"},
    {"model", "seq-len", K::count, &O::seq_len, "tokens per sequence; 0: the model's 2048"},
    {"model", "n-kv-head", K::count, &O::n_kv_head, "key/value heads; 0: as many as heads"},

    {"memory", "train", K::text, &O::train, "what trains: full"},
    {"memory", "quant", K::text, &O::quant,
     "weights of the blocks as forward and backward see them: none | nf4"},
    {"memory", "ckpt-activations", K::flag, &O::ckpt_activations,
     "keep only block inputs, recompute the rest in backward"},
    {"memory", "dtype", K::text, &O::dtype, "activations and unpacked weights: auto | f32 | bf16"},
    {"memory", "grad-dtype", K::text, &O::grad_dtype, "gradient accumulators: auto | f32 | bf16"},
    {"memory", "micro-batch", K::count, &O::micro_batch, "rows per micro-batch; 0: the most that fit"},
    {"memory", "loss-chunk", K::count, &O::loss_chunk,
     "tokens per chunk of the loss head; 0: 128 MiB of logits"},
    {"memory", "paging", K::flag, &O::paging, "master weights and moments live in host memory"},
    {"memory", "device", K::text, &O::device, "auto | cpu | cuda"},
    {"memory", "arch", K::text, &O::arch,
     "card to plan for where there is none: sm_80, sm_86, sm_89, sm_90, sm_120"},
    {"memory", "vram", K::bytes, &O::vram_bytes, "cap on device memory, as 12GiB; 0: what the device has"},
    {"memory", "ram", K::bytes, &O::ram_bytes, "cap on host memory; 0: what the machine has"},
    {"memory", "threads", K::count, &O::threads, "cpu threads; 0: all cores (results do not depend on it)"},

    {"optim", "optim", K::text, &O::optim, "adamw8 | adamw"},
    {"optim", "matrix-lr", K::number, &O::matrix_lr, "peak learning rate of the block matrices"},
    {"optim", "embedding-lr", K::number, &O::embedding_lr,
     "peak rate of the embedding, times (width/768)^-0.5"},
    {"optim", "head-lr", K::number, &O::head_lr, "peak rate of the head, times (width/768)^-0.5"},
    {"optim", "beta1", K::number, &O::beta1, "decay of the first moment"},
    {"optim", "beta2", K::number, &O::beta2, "decay of the second moment"},
    {"optim", "eps", K::number, &O::eps, "added to the root of the second moment"},
    {"optim", "weight-decay", K::number, &O::weight_decay, "decoupled weight decay"},
    {"optim", "clip", K::number, &O::clip, "global gradient norm after accumulation; 0: off"},
    {"optim", "schedule", K::text, &O::schedule, "warmdown | cosine"},
    {"optim", "warmup-steps", K::count, &O::warmup_steps, "linear warm-up"},
    {"optim", "warmdown", K::number, &O::warmdown, "share of the steps that decays (schedule warmdown)"},
    {"optim", "final-lr", K::number, &O::final_lr, "share of the peak rate at the end"},
    {"optim", "control", K::text, &O::control, "experiments: none | no-master | frozen-matrices"},

    {"run", "batch-tokens", K::count, &O::batch_tokens, "tokens per optimizer step"},
    {"run", "steps", K::count, &O::steps, "optimizer steps; 0: from --tokens"},
    {"run", "tokens", K::count, &O::tokens, "tokens to train on, as 600k or 37.6B; 0: 20 per parameter"},
    {"run", "seed", K::count, &O::seed, "of weights, data order and samples"},
    {"run", "out", K::text, &O::out, "run folder; the same command again continues the run in it"},
    {"run", "stop-after", K::duration, &O::stop_after_s, "stop and save after this time, as 8h; 0: never"},
    {"run", "fresh", K::flag, &O::fresh, "start anew: refuse a run folder that holds a run"},
    {"run", "allow-changes", K::flag, &O::allow_changes,
     "continue although data, seed or tokens per step changed"},

    {"data", "data", K::texts, &O::data,
     "training text (.txt .jsonl, .gz .zst of both), folders, '-', or token shards (.bin)"},
    {"data", "val-data", K::texts, &O::val_data, "validation text or shards; empty: the end of --data"},
    {"data", "tokenizer", K::text, &O::tokenizer,
     "tokenizer file; empty: beside the shards, or made from the data"},
    {"data", "tokenizer-kind", K::text, &O::tokenizer_kind, "what to make: bpe | bytes | char"},
    {"data", "split-pattern", K::text, &O::split_pattern, "how bpe cuts text first: nanochat | gpt2"},
    {"data", "val-fraction", K::number, &O::val_fraction, "share of the text kept for validation"},
    {"data", "cache", K::text, &O::cache, "folder for token shards made from text"},

    {"watch", "eval-every", K::count, &O::eval_every, "steps between evaluations; 0: only at the end"},
    {"watch", "eval-tokens", K::count, &O::eval_tokens, "validation tokens per evaluation; 0: all"},
    {"watch", "save-every", K::count, &O::save_every,
     "steps between checkpoints; 0: so that saving takes at most 1 % of the time"},
    {"watch", "keep", K::count, &O::keep, "checkpoints kept, at least 2"},
    {"watch", "sample-every", K::count, &O::sample_every, "steps between samples; 0: only at the end"},
    {"watch", "sample-tokens", K::count, &O::sample_tokens, "tokens per sample; 0: never sample"},
    {"watch", "prompt", K::text, &O::prompt, "what samples continue"},
    {"watch", "temperature", K::number, &O::temperature, "of samples; 0: the likeliest token"},
    {"watch", "top-k", K::count, &O::top_k, "sample among the k likeliest tokens; 0: all"},
    {"watch", "log-every", K::count, &O::log_every, "steps between printed lines"},
    {"watch", "quiet", K::flag, &O::quiet, "print results and errors only"},
};

constexpr std::string_view kCommandLine = "command line";

std::string normalised(std::string_view name) {
  std::string text(name);
  std::replace(text.begin(), text.end(), '_', '-');
  return text;
}

constexpr auto kNames = [] {
  std::array<std::string_view, std::size(kTable)> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kTable[i].name;
  return names;
}();

[[noreturn]] void throw_unknown(std::string_view name, std::string_view origin) {
  const std::string_view similar = similar_name(normalised(name), kNames);
  throw ConfigError(
      fmt::format("unknown option '{}' ({})", name, origin),
      fmt::format("{}`qtrain --help` lists all options",
                  similar.empty() ? std::string() : fmt::format("did you mean --{}? ", similar)));
}

// The parse functions below and those of units.h name the option and where its text came from by `label`.
double parse_number(const std::string& text, std::string_view label) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || stop != text.data() + text.size() || !(value >= 0) || value > 1e300) {
    throw ConfigError(fmt::format("{}: '{}' is not a number of zero or more", label, text),
                      "write it as 0.003 or 3e-3");
  }
  return value;
}

// All 64 bits: what a generator of seeds prints may be above the largest count.
std::uint64_t parse_seed(const std::string& text, std::string_view label) {
  std::uint64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{} && stop == text.data() + text.size()) return value;
  return static_cast<std::uint64_t>(parse_count(text, label));
}

bool parse_flag(const std::string& text, std::string_view label) {
  for (const char* word : {"true", "1", "on", "yes"}) {
    if (text == word) return true;
  }
  for (const char* word : {"false", "0", "off", "no"}) {
    if (text == word) return false;
  }
  throw ConfigError(fmt::format("{}: '{}' is neither on nor off", label, text), "use true or false");
}

// Words of a list as option_text() joins them: a word with blanks or quotes in it stands in double quotes.
constexpr std::string_view kBlanks = " \t";

std::string quoted(const std::string& word) {
  if (!word.empty() && word.find_first_of(" \t\"") == std::string::npos) return word;
  std::string text = "\"";
  for (const char c : word) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + '"';
}

std::vector<std::string> split_words(std::string_view text, std::string_view label) {
  std::vector<std::string> words;
  for (std::size_t at = text.find_first_not_of(kBlanks); at < text.size();
       at = text.find_first_not_of(kBlanks, at)) {
    std::string word;
    if (text[at] != '"') {
      const std::size_t end = std::min(text.find_first_of(kBlanks, at), text.size());
      word = text.substr(at, end - at);
      at = end;
    } else {
      for (++at; at < text.size() && text[at] != '"'; ++at) {
        if (text[at] == '\\' && at + 1 < text.size()) ++at;
        word += text[at];
      }
      if (at == text.size())
        throw ConfigError(fmt::format("{}: a quote is not closed in {}", label, text),
                          "end the word with \"");
      ++at;
    }
    words.push_back(std::move(word));
  }
  return words;
}

std::string label_of(const OptionSpec& spec, std::string_view origin) {
  return origin == kCommandLine ? fmt::format("--{}", spec.name)
                                : fmt::format("--{} ({})", spec.name, origin);
}

void read_file(const std::string& path, LoadedOptions& loaded) {
  namespace po = boost::program_options;
  std::ifstream file(path);
  // A folder opens like a file and reads like an empty one.
  if (!file || std::filesystem::is_directory(path))
    throw ConfigError(fmt::format("cannot read the configuration file '{}'", path), "check --config");
  po::parsed_options parsed(nullptr);
  try {
    parsed = po::parse_config_file(file, po::options_description(), true);
  } catch (const po::error& e) {
    throw ConfigError(fmt::format("{}: {}", path, e.what()),
                      "a line is `name = value`, a section is `[memory]`, a comment starts with #");
  }
  std::map<const OptionSpec*, std::vector<std::string>> values;
  for (const auto& entry : parsed.options) {
    std::string key = normalised(entry.string_key);
    const OptionSpec* spec = nullptr;
    if (const std::size_t dot = key.find('.'); dot != std::string::npos) {
      spec = find_option(key.substr(dot + 1));
      if (spec != nullptr && key.substr(0, dot) != spec->section) {
        throw ConfigError(fmt::format("{}: option '{}' belongs in section [{}], not [{}]", path, spec->name,
                                      spec->section, key.substr(0, dot)),
                          "move the line, or leave sections out");
      }
    } else {
      spec = find_option(key);
    }
    if (spec == nullptr) throw_unknown(key.substr(key.find('.') + 1), path);
    std::vector<std::string>& list = values[spec];
    for (const std::string& value : entry.value) {
      const std::vector<std::string> words = option_values(*spec, value, path);
      list.insert(list.end(), words.begin(), words.end());
    }
  }
  for (const auto& [spec, list] : values) {
    set_option(loaded.options, *spec, list, path);
    loaded.source[spec->name] = OptionSource::file;
  }
  loaded.config_file = path;
}

void read_environment(LoadedOptions& loaded) {
  constexpr std::string_view kPrefix = "QTRAIN_";
  // Names that steer tests and tools rather than runs.
  constexpr std::string_view kNotOptions[] = {"QTRAIN_REQUIRE_CUDA", "QTRAIN_SYNC_LAUNCHES",
                                              "QTRAIN_TEST_PARTS"};
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::size_t equals = text.find('=');
    if (!text.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    const std::string variable(text.substr(0, equals));
    if (std::find(std::begin(kNotOptions), std::end(kNotOptions), variable) != std::end(kNotOptions))
      continue;
    std::string name = normalised(variable.substr(kPrefix.size()));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const OptionSpec* spec = find_option(name);
    if (spec == nullptr) throw_unknown(name, "environment variable " + variable);
    set_option(loaded.options, *spec, option_values(*spec, text.substr(equals + 1), variable), variable);
    loaded.source[spec->name] = OptionSource::environment;
  }
}

// What the command line gives, before it is applied: the file it may name has to be read first.
struct CommandLine {
  std::string config_file;
  std::map<const OptionSpec*, std::vector<std::string>> values;
};

CommandLine read_command_line(std::span<const std::string> args) {
  namespace po = boost::program_options;
  // Collects words that belong to no option, to name the first of them. Cannot be typed: names never hold a
  // blank.
  constexpr const char* kStray = "stray word";
  // '_' and '-' are the same in names, not in values.
  std::vector<std::string> words(args.begin(), args.end());
  for (std::string& word : words) {
    if (word.starts_with("--"))
      word = normalised(word.substr(0, word.find('='))) + word.substr(std::min(word.find('='), word.size()));
  }
  po::options_description description;
  auto add = description.add_options();
  add("config", po::value<std::string>());
  add(kStray, po::value<std::vector<std::string>>());
  for (const OptionSpec& spec : kTable) {
    if (spec.kind == K::flag) {
      add(spec.name, po::value<std::string>()->implicit_value("true")->zero_tokens());
      add(fmt::format("no-{}", spec.name).c_str(),
          po::value<std::string>()->implicit_value("true")->zero_tokens());
    } else if (spec.kind == K::texts) {
      add(spec.name, po::value<std::vector<std::string>>()->multitoken());
    } else {
      add(spec.name, po::value<std::string>());
    }
  }
  CommandLine line;
  try {
    namespace style = po::command_line_style;
    const auto parsed = po::command_line_parser(words)
                            .options(description)
                            .positional(po::positional_options_description().add(kStray, -1))
                            .style(style::allow_long | style::long_allow_adjacent | style::long_allow_next)
                            .run();
    for (const auto& entry : parsed.options) {
      if (entry.string_key == kStray) {
        throw ConfigError(fmt::format("'{}' on the command line belongs to no option", entry.value.front()),
                          "options start with --; a flag takes no value: write --paging or --no-paging");
      }
      if (entry.string_key == "config") {
        QT_CHECK(line.config_file.empty(), ConfigError, "--config is given twice on the command line");
        line.config_file = entry.value.front();
        QT_CHECK(!line.config_file.empty(), ConfigError, "--config needs the name of a file");
        continue;
      }
      const OptionSpec* spec = find_option(entry.string_key);
      if (spec != nullptr) {
        std::vector<std::string>& list = line.values[spec];
        if (spec->kind == K::flag) list = {"true"};
        if (spec->kind == K::texts) list.insert(list.end(), entry.value.begin(), entry.value.end());
        if (spec->kind != K::flag && spec->kind != K::texts) {
          QT_CHECK(list.empty(), ConfigError, "--{} is given twice on the command line", spec->name);
          list = entry.value;
        }
      } else {
        line.values[find_option(entry.string_key.substr(3))] = {"false"};  // --no-<flag>
      }
    }
  } catch (const po::unknown_option& e) {
    const std::string name = e.get_option_name();
    throw_unknown(name.substr(std::min(name.find_first_not_of('-'), name.size())), kCommandLine);
  } catch (const po::error& e) {
    throw ConfigError(fmt::format("command line: {}", e.what()), "`qtrain --help` lists all options");
  }
  return line;
}

}  // namespace

std::span<const OptionSpec> option_table() { return kTable; }

std::string_view option_source_name(OptionSource source) {
  constexpr std::string_view kSources[] = {"default", "file", "environment", kCommandLine};
  return kSources[static_cast<std::size_t>(source)];
}

const OptionSpec* find_option(std::string_view name) {
  const std::string wanted = normalised(name);
  const auto it = std::find_if(std::begin(kTable), std::end(kTable),
                               [&](const OptionSpec& s) { return wanted == s.name; });
  return it == std::end(kTable) ? nullptr : &*it;
}

std::vector<std::string> option_values(const OptionSpec& spec, std::string_view text,
                                       std::string_view origin) {
  if (spec.kind != K::texts) return {std::string(text)};
  return split_words(text, label_of(spec, origin));
}

void set_option(Options& options, const OptionSpec& spec, const std::vector<std::string>& values,
                std::string_view origin) {
  if (auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.member)) {
    options.** list = values;
    return;
  }
  QT_CHECK(values.size() == 1, ConfigError, "option '{}' is given {} times ({})", spec.name, values.size(),
           origin);
  const std::string& text = values.front();
  const std::string label = label_of(spec, origin);
  if (auto* member = std::get_if<std::string Options::*>(&spec.member)) {
    options.** member = text;
  } else if (auto* flag = std::get_if<bool Options::*>(&spec.member)) {
    options.** flag = parse_flag(text, label);
  } else if (auto* seed = std::get_if<std::uint64_t Options::*>(&spec.member)) {
    options.** seed = parse_seed(text, label);
  } else if (auto* number = std::get_if<double Options::*>(&spec.member)) {
    options.** number = spec.kind == K::duration ? parse_duration(text, label) : parse_number(text, label);
  } else if (auto* count = std::get_if<std::int64_t Options::*>(&spec.member)) {
    options.** count = spec.kind == K::bytes ? parse_bytes(text, label) : parse_count(text, label);
  }
}

std::string option_text(const Options& options, const OptionSpec& spec) {
  return std::visit(
      [&](auto member) -> std::string {
        const auto& value = options.*member;
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>) return value;
        if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          std::string text;
          for (const std::string& word : value) text += (text.empty() ? "" : " ") + quoted(word);
          return text;
        }
        if constexpr (std::is_same_v<T, bool>) return value ? "true" : "false";
        if constexpr (std::is_same_v<T, double>) return fmt::format("{}", value);
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) return std::to_string(value);
        return {};
      },
      spec.member);
}

LoadedOptions load_options(std::span<const std::string> args) {
  const CommandLine line = read_command_line(args);
  LoadedOptions loaded;
  if (!line.config_file.empty()) read_file(line.config_file, loaded);
  read_environment(loaded);
  for (const auto& [spec, values] : line.values) {
    set_option(loaded.options, *spec, values, kCommandLine);
    loaded.source[spec->name] = OptionSource::command_line;
  }
  return loaded;
}

void print_config(std::ostream& out, const LoadedOptions& loaded) {
  for (const OptionSpec& spec : kTable) {
    const auto it = loaded.source.find(spec.name);
    const OptionSource source = it == loaded.source.end() ? OptionSource::default_value : it->second;
    out << fmt::format(
        "{:<18} = {:<28} # {}\n", spec.name, option_text(loaded.options, spec),
        source == OptionSource::file ? loaded.config_file : std::string(option_source_name(source)));
  }
}

void print_option_help(std::ostream& out) {
  const Options defaults;
  std::string_view section;
  for (const OptionSpec& spec : kTable) {
    if (section != spec.section) out << fmt::format("\n[{}]\n", section = spec.section);
    out << fmt::format("  --{:<18} {} [{}]\n", spec.name, spec.help, option_text(defaults, spec));
  }
}

}  // namespace qt

#include "src/options/nanogpt.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "src/core/error.h"
#include "src/model/family.h"
#include "src/options/nanogpt_file.h"

namespace qt {

namespace {

struct Alias {
  const char* word;
  const char* option;
};
constexpr Alias kAliases[] = {
    {"block-size", "seq-len"},
    {"max-iters", "steps"},
    {"eval-interval", "eval-every"},
    {"log-interval", "log-every"},
    {"warmup-iters", "warmup-steps"},
    {"lr-decay-iters", "decay-steps"},
    {"grad-clip", "clip"},
    {"out-dir", "out"},
    {"init", "init-from"},  // not nanoGPT's: what the hand types
};

// Words with a rule of their own below.
constexpr const char* kDataset = "dataset";
constexpr const char* kDecayLr = "decay-lr";
constexpr const char* kEvalOnly = "eval-only";

// Words that nothing here needs, and why.
constexpr const char* kNoWandb =
    "wandb is not needed here: every run writes log.jsonl and TensorBoard event files into its folder "
    "(--out)";
struct Answer {
  const char* word;
  const char* note;
};
constexpr Answer kAnswers[] = {
    {"compile", "compile is not needed here: the kernels are part of the program"},
    {"backend", "backend is not needed here: one process trains on one device"},
    {"always-save-checkpoint",
     "always_save_checkpoint is not needed here: --save-every and --keep rule checkpoints"},
    {"wandb-log", kNoWandb},
    {"wandb-project", kNoWandb},
    {"wandb-run-name", kNoWandb},
};

constexpr const char* kGroupRates[] = {"matrix-lr", "embedding-lr", "head-lr"};

// Above every bound that the plan checks, rather than wrapped around.
std::int64_t product(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  return __builtin_mul_overflow(a, b, &result) ? std::numeric_limits<std::int64_t>::max() : result;
}

void set(LoadedOptions& loaded, const char* name, const std::string& text, OptionSource source) {
  set_option(loaded.options, *find_option(name), {text}, name);
  loaded.source[name] = source;
}

void unset(LoadedOptions& loaded, const char* name) {
  const OptionSpec* spec = find_option(name);
  copy_option(Options(), loaded.options, *spec);
  if (const auto it = loaded.source.find(name); it != loaded.source.end()) loaded.source.erase(it);
}

OptionSource strongest(const LoadedOptions& loaded, std::initializer_list<const char*> names) {
  OptionSource source = OptionSource::default_value;
  for (const char* name : names) source = std::max(source, loaded.source_of(name));
  return source;
}

std::string given_as(const LoadedOptions& loaded, const char* name) {
  return fmt::format("--{} {} ({})", name, option_text(loaded.options, *find_option(name)),
                     loaded.origin_of(name));
}

// An imported file always tells a shape: nanoGPT's default is that of gpt2.
void settle_shape(LoadedOptions& loaded) {
  if (!is_nanogpt_file(loaded.config_file)) return;
  Options& o = loaded.options;
  const Family& gpt = families::gpt;
  const NamedShape& gpt2 = gpt.shapes.front();
  const bool shaped =
      loaded.source_of("model") <= OptionSource::file && (o.model == gpt2.name || o.model == gpt.name);
  if (!shaped) {
    // Another model by name: the file's shape was not meant for it.
    for (const char* name : {"n-layer", "n-head", "n-embd"}) {
      if (loaded.source_of(name) == OptionSource::file) unset(loaded, name);
    }
    const Family* const family = find_family(o.model);
    if (family != nullptr && family->has_bias_and_dropout) return;
    for (const char* name : {"bias", "dropout"}) {
      if (loaded.source_of(name) == OptionSource::file) unset(loaded, name);
    }
    return;
  }
  const bool named = o.n_layer == gpt2.n_layer && o.n_head == gpt2.n_head && o.n_embd == gpt2.n_embd;
  o.model = named ? gpt2.name : gpt.name;
  if (!named) return;
  for (const char* name : {"n-layer", "n-head", "n-embd"}) unset(loaded, name);
}

void take_family_defaults(LoadedOptions& loaded) {
  const Family* const family = find_family(loaded.options.model);
  if (family == nullptr) return;
  const auto take = [&](const char* name, const char* text) {
    if (!loaded.given(name)) set(loaded, name, text, OptionSource::model_default);
  };
  for (const TrainingDefaults::Option& d : family->training.options) take(d.name, d.text);
  const char* const rate = family->training.learning_rate;
  if (rate == nullptr) return;
  const auto is_given = [&](const char* name) { return loaded.given(name); };
  const bool by_group = std::any_of(std::begin(kGroupRates), std::end(kGroupRates), is_given);
  if (!by_group) take("learning-rate", rate);
  // A run that gives the rate of one group does not get the others at rates that were swept for nanochat.
  if (loaded.options.learning_rate > 0) return;
  for (const char* name : kGroupRates) take(name, rate);
}

void settle_rates(LoadedOptions& loaded) {
  Options& o = loaded.options;
  const Options defaults;
  const auto same_as_default = [&](const char* name) {
    return option_text(o, *find_option(name)) == option_text(defaults, *find_option(name));
  };
  for (const char* name : kGroupRates) {
    // At its default it may stand in a file that --print-config wrote.
    const bool heeded = o.learning_rate == 0 || !loaded.given(name) || same_as_default(name);
    if (heeded || loaded.source_of(name) < loaded.source_of("learning-rate")) continue;
    throw ConfigError(
        fmt::format("{} has no effect beside {}", given_as(loaded, name), given_as(loaded, "learning-rate")),
        "give one of the two; --learning-rate 0 leaves the rates to --matrix-lr, --embedding-lr "
        "and --head-lr");
  }
  const OptionSource floor = loaded.source_of("min-lr"), share = loaded.source_of("final-lr");
  if (!loaded.given("min-lr")) return;
  if (floor < share) return unset(loaded, "min-lr");
  const bool constant = o.schedule == ScheduleKind::warmdown && o.warmdown == 0;
  if (constant) return;
  if (o.min_lr == 0) {
    if (floor > share) set(loaded, "final-lr", "0", floor);
    return;
  }
  if (!(o.learning_rate > 0)) {
    throw ConfigError(fmt::format("{} needs --learning-rate: it is the rate that one peak rate falls to",
                                  given_as(loaded, "min-lr")),
                      "give both, or --final-lr with the share of the peak that is left at the end");
  }
  if (o.min_lr > o.learning_rate) {
    throw ConfigError(
        fmt::format("{} is above {}", given_as(loaded, "min-lr"), given_as(loaded, "learning-rate")),
        "give a --min-lr below the peak, or 0 to end at none");
  }
  o.final_lr = o.min_lr / o.learning_rate;
  loaded.source["final-lr"] = floor;
}

// `wanted` tokens by one way to say it, given at `source`, against --`option`'s own number. True: set it.
bool counts(const LoadedOptions& loaded, const char* option, std::int64_t now, std::int64_t wanted,
            OptionSource source, OptionSource factors, const std::string& other_way) {
  if (loaded.source_of(option) != source) return loaded.source_of(option) < source;
  // A factor from a stronger source was meant to change the product.
  if (now == wanted || factors > source) return true;
  throw ConfigError(fmt::format("{} and {}, which make {} tokens, come from the same source and differ",
                                given_as(loaded, option), other_way, wanted),
                    "leave one of the two out");
}

void settle_batch(LoadedOptions& loaded) {
  Options& o = loaded.options;
  const std::int64_t seq_len = o.seq_len > 0 ? o.seq_len : default_seq_len(o.model);
  const OptionSource rows = strongest(loaded, {"batch-size", "gradient-accumulation-steps"});
  const bool tokens_rule = rows < loaded.source_of("batch-tokens");

  if (o.eval_iters > 0) {
    if (o.batch_size == 0) {
      throw ConfigError(fmt::format("{} counts batches of --batch-size rows, which is not given",
                                    given_as(loaded, "eval-iters")),
                        "give --batch-size too, or --eval-tokens instead");
    }
    const std::int64_t wanted = product(product(o.eval_iters, o.batch_size), seq_len);
    const OptionSource source = loaded.source_of("eval-iters");
    if (counts(loaded, "eval-tokens", o.eval_tokens, wanted, source,
               strongest(loaded, {"batch-size", "seq-len"}), given_as(loaded, "eval-iters"))) {
      o.eval_tokens = wanted;
      loaded.source["eval-tokens"] = source;
      if (tokens_rule) unset(loaded, "eval-iters");  // its rows are about to go
    } else {
      unset(loaded, "eval-iters");
    }
  }

  if (o.batch_size == 0 && o.gradient_accumulation_steps == 0) return;
  if (tokens_rule) {
    unset(loaded, "batch-size");
    unset(loaded, "gradient-accumulation-steps");
    return;
  }
  if (o.batch_size == 0) {
    throw ConfigError(
        fmt::format("{} needs --batch-size, the rows of what is accumulated",
                    given_as(loaded, "gradient-accumulation-steps")),
        "give both, or --batch-tokens; how many rows are computed at once is the plan's choice");
  }
  const std::int64_t step_rows =
      product(o.batch_size, std::max<std::int64_t>(o.gradient_accumulation_steps, 1));
  const std::int64_t wanted = product(step_rows, seq_len);
  if (!counts(loaded, "batch-tokens", o.batch_tokens, wanted, rows, loaded.source_of("seq-len"),
              given_as(loaded, "batch-size")))
    return;
  o.batch_tokens = wanted;
  loaded.source["batch-tokens"] = rows;
}

void refuse_pretrained_names(const LoadedOptions& loaded) {
  const std::string& from = loaded.options.init_from;
  const Family* const family = find_family(from);
  if (family == nullptr || family->has_fixed_shapes() || from == family->name) return;
  throw ConfigError(
      fmt::format("{}: nothing is downloaded here", given_as(loaded, "init-from")),
      "fetch the weights and run tools/convert_nanogpt.py on them, then give --init-from FOLDER");
}

std::optional<NanogptMeaning> device_meaning(const std::string& value, bool from_its_file) {
  const auto setting = [](const char* device) {
    return NanogptMeaning::Setting{find_option("device"), {device}};
  };
  if (from_its_file && (value.starts_with("cuda") || value == "mps"))
    return NanogptMeaning{{setting("auto")},
                          fmt::format("device '{}' is read as auto: the card that is there, "
                                      "or the cpu",
                                      value)};
  if (value == "mps")
    return NanogptMeaning{{setting("auto")}, "device 'mps' is not known here and read as auto"};
  if (value == "cuda:0") return NanogptMeaning{{setting("cuda")}, {}};
  if (value.starts_with("cuda:")) {
    throw ConfigError(fmt::format("--device {}: a run uses the first card that it sees", value),
                      fmt::format("set CUDA_VISIBLE_DEVICES={} and give --device cuda", value.substr(5)));
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::string_view> nanogpt_words() {
  std::vector<std::string_view> words = {kDataset, kDecayLr, kEvalOnly};
  for (const Alias& a : kAliases) words.emplace_back(a.word);
  for (const Answer& a : kAnswers) words.emplace_back(a.word);
  return words;
}

const OptionSpec* nanogpt_target(std::string_view key) {
  const std::string name = option_name(key);
  if (name == kDataset) return find_option("data");
  for (const Alias& a : kAliases) {
    if (name == a.word) return find_option(a.option);
  }
  return nullptr;
}

std::optional<NanogptMeaning> nanogpt_meaning(std::string_view key, const std::string& value,
                                              std::string_view origin, bool from_its_file) {
  const std::string name = option_name(key);
  NanogptMeaning meaning;
  if (name == "device") return device_meaning(value, from_its_file);
  if (name == kDataset) {
    const bool is_path = value.find('/') != std::string::npos;
    meaning.settings = {{find_option("data"), {is_path ? value : "data/" + value}}};
    return meaning;
  }
  if (name == kDecayLr) {
    const bool decays = option_flag(value, fmt::format("decay_lr ({})", origin));
    meaning.settings = {{find_option("schedule"), {decays ? "cosine" : "warmdown"}}};
    if (!decays) {
      meaning.settings.push_back({find_option("warmdown"), {"0"}});
      // nanoGPT's warm-up is part of its decay.
      meaning.settings.push_back({find_option("warmup-steps"), {"0"}, true});
    }
    return meaning;
  }
  if (name == kEvalOnly) {
    if (option_flag(value, fmt::format("eval_only ({})", origin))) {
      throw ConfigError(fmt::format("eval_only ({}): evaluating is a verb here", origin),
                        "leave eval_only out and run `qtrain eval --out FOLDER`");
    }
    return meaning;
  }
  if (const OptionSpec* spec = nanogpt_target(name)) {
    meaning.settings = {{spec, {value}}};
    return meaning;
  }
  for (const Answer& a : kAnswers) {
    if (name == a.word) {
      meaning.note = a.note;
      return meaning;
    }
  }
  return std::nullopt;
}

void settle_nanogpt_words(LoadedOptions& loaded) {
  settle_shape(loaded);
  take_family_defaults(loaded);
  settle_rates(loaded);
  settle_batch(loaded);
  refuse_pretrained_names(loaded);
}

}  // namespace qt

// The table itself: one row per option, in the order of --help. Values as text are option_table.cpp's affair,
// sources option_sources.cpp's.
#include <algorithm>
#include <iterator>

#include "optim/update_rule.h"
#include "quant/format.h"
#include "src/core/error.h"
#include "src/options/option_table.h"
#include "src/tokenizer/split.h"

namespace qt {

namespace {

using K = OptionKind;
using O = Options;
using R = OnResume;

template <class Rows>
std::string names_of(const Rows& rows) {
  std::vector<std::string_view> names;
  for (const auto& row : rows) names.emplace_back(row.name);
  return fmt::format("{}", fmt::join(names, " | "));
}
std::string formats() { return names_of(all_formats()); }
std::string update_rules() {
  std::vector<std::string_view> names;
  for (const UpdateRule* rule : all_update_rules()) names.push_back(rule->name);
  return fmt::format("{}", fmt::join(names, " | "));
}
void refuse_format(const std::string& word) { format_from_name(word); }
void refuse_update_rule(const std::string& word) { update_rule_by_name(word); }
std::string split_patterns() { return fmt::format("{}", fmt::join(Splitter::names(), " | ")); }

constexpr OptionWords words(const char* fixed) { return {.fixed = fixed}; }
constexpr OptionWords words_of(std::string (*table)(), void (*refuse)(const std::string&) = nullptr) {
  return {.of_table = table, .refuse = refuse};
}

constexpr OptionSynonym kDTypeSynonyms[] = {{"float32", "f32"}, {"fp32", "f32"},  {"float16", "fp16"},
                                            {"f16", "fp16"},    {"half", "fp16"}, {"bfloat16", "bf16"}};
// Paging was a flag once.
constexpr OptionSynonym kSwitchSynonyms[] = {{"true", "on"}, {"false", "off"}, {"yes", "on"},
                                             {"no", "off"},  {"1", "on"},      {"0", "off"}};

constexpr OptionSpec kTable[] = {
    {"model", "model", K::text, &O::model, R::fixed, kSpeed | kOfWeights,
     "d2, d4 ... d34 (nanochat), gpt2, gpt2-medium, gpt2-large, gpt2-xl, or gpt or nanochat with a "
     "shape of your own"},
    {"model", "vocab-size", K::count, &O::vocab_size, R::fixed, kSpeed | kAdopted | kOfWeights,
     "vocabulary; 0: the tokenizer's (4096 where one is made)"},
    {"model", "seq-len", K::count, &O::seq_len, R::fixed, kSpeed | kAdopted,
     "tokens per sequence; 0: the model's own"},
    {"model", "n-layer", K::count, &O::n_layer, R::fixed, kSpeed | kOfWeights, "blocks; 0: the model's own"},
    {"model", "n-head", K::count, &O::n_head, R::fixed, kSpeed | kOfWeights,
     "attention heads; 0: the model's own"},
    {"model", "n-embd", K::count, &O::n_embd, R::fixed, kSpeed | kOfWeights, "width; 0: the model's own"},
    {"model", "n-kv-head", K::count, &O::n_kv_head, R::fixed, kSpeed | kAdopted | kOfWeights,
     "key/value heads; 0: as many as heads"},
    {"model", "norm-eps", K::number, &O::norm_eps, R::fixed, kOfWeights,
     "added to the mean square under the root of norms; 0: the model's own"},
    {"model", "bias", K::flag, &O::bias, R::fixed, kSpeed | kOfWeights,
     "biases in linear layers and norms (gpt models)"},
    {"model", "dropout", K::number, &O::dropout, R::printed, kSpeed,
     "share of activations dropped in training (gpt models)"},

    {"memory", "train", K::text, choice<&O::train>(), R::fixed, 0, "what trains", words("full")},
    {"memory", "quant", K::text, choice<&O::quant>(), R::stored_as, kSpeed,
     "weights of the blocks as forward and backward see them", words_of(formats, refuse_format)},
    {"memory", "ckpt-activations", K::flag, &O::ckpt_activations, R::shown, kSpeed,
     "keep only block inputs, recompute the rest in backward"},
    {"memory", "dtype", K::text, choice<&O::dtype>(), R::stored_as, kSpeed | kAdopted,
     "activations and unpacked weights", words("auto | f32 | bf16 | fp16"), kDTypeSynonyms},
    {"memory", "grad-dtype", K::text, choice<&O::grad_dtype>(), R::bits, kSpeed | kAdopted,
     "gradient accumulators", words("auto | f32 | bf16"), kDTypeSynonyms},
    {"memory", "micro-batch", K::count, &O::micro_batch, R::bits, kSpeed,
     "rows per micro-batch; 0: the most that fit"},
    {"memory", "loss-chunk", K::count, &O::loss_chunk, R::bits, kSpeed,
     "tokens per chunk of the loss head; 0: 128 MiB of logits"},
    {"memory", "master", K::text, choice<&O::master>(), R::stored_as, kSpeed,
     "master weights; bf16-sr: half the memory, updates rounded at random", words("f32 | bf16-sr")},
    {"memory", "paging", K::text, choice<&O::paging>(), R::shown, kSpeed,
     "master weights and moments live in host memory", words("auto | on | off"), kSwitchSynonyms},
    {"memory", "device", K::text, choice<&O::device>(), R::bits, kSpeed, "what computes",
     words("auto | cpu | cuda")},
    {"memory", "arch", K::text, &O::arch, R::bits, kSpeed,
     "card to plan for: auto | sm_80 | sm_86 | sm_89 | sm_90 | sm_120"},
    {"memory", "gemm", K::text, choice<&O::gemm>(), R::bits, kSpeed | kAdopted,
     "products with packed weights on a card: inside the product (least memory) or by expanded slices",
     words("auto | fused | scratch")},
    {"memory", "vram", K::bytes, &O::vram_bytes, R::shown, 0,
     "cap on device memory, as 12GiB; 0: what the device has"},
    {"memory", "ram", K::bytes, &O::ram_bytes, R::shown, 0, "cap on host memory; 0: what the machine has"},
    {"memory", "threads", K::count, &O::threads, R::shown, kSpeed,
     "cpu threads; 0: all cores (results do not depend on it)"},

    {"optim", "optim", K::text, choice<&O::optim>(), R::stored_as, kSpeed, "",
     words_of(update_rules, refuse_update_rule)},
    {"optim", "learning-rate", K::number, &O::learning_rate, R::printed, 0,
     "one peak rate for all groups, not scaled by width; 0: the three rates below"},
    {"optim", "matrix-lr", K::number, &O::matrix_lr, R::printed, 0,
     "peak learning rate of the block matrices"},
    {"optim", "embedding-lr", K::number, &O::embedding_lr, R::printed, 0,
     "peak rate of the embedding, times (width/768)^-0.5"},
    {"optim", "head-lr", K::number, &O::head_lr, R::printed, 0,
     "peak rate of the head, times (width/768)^-0.5"},
    {"optim", "beta1", K::number, &O::beta1, R::printed, 0, "decay of the first moment"},
    {"optim", "beta2", K::number, &O::beta2, R::printed, 0, "decay of the second moment"},
    {"optim", "eps", K::number, &O::eps, R::printed, 0, "added to the root of the second moment"},
    {"optim", "weight-decay", K::number, &O::weight_decay, R::printed, 0, "decoupled weight decay"},
    {"optim", "clip", K::number, &O::clip, R::printed, 0, "global gradient norm after accumulation; 0: off"},
    {"optim", "schedule", K::text, choice<&O::schedule>(), R::printed, 0, "how the rate falls",
     words("warmdown | cosine")},
    {"optim", "warmup-steps", K::count, &O::warmup_steps, R::printed, 0, "linear warm-up"},
    {"optim", "warmdown", K::number, &O::warmdown, R::printed, 0,
     "share of the steps that decays (schedule warmdown)"},
    {"optim", "final-lr", K::number, &O::final_lr, R::printed, 0, "share of the peak rate at the end"},
    {"optim", "min-lr", K::number, &O::min_lr, R::printed, 0, "rate at the end; 0: --final-lr tells it"},
    {"optim", "decay-steps", K::count, &O::decay_steps, R::printed, 0,
     "step at which the schedule ends; 0: --steps"},

    {"run", "batch-tokens", K::count, &O::batch_tokens, R::identity, kSpeed, "tokens per optimizer step"},
    {"run", "batch-size", K::count, &O::batch_size, R::free, 0,
     "rows of one of nanoGPT's micro-batches; sets --batch-tokens, not --micro-batch"},
    {"run", "gradient-accumulation-steps", K::count, &O::gradient_accumulation_steps, R::free, 0,
     "nanoGPT's micro-batches per step; sets --batch-tokens"},
    {"run", "init-from", K::text, &O::init_from, R::free, 0,
     "scratch | resume | weights to start from: a Hugging Face folder, a safetensors file, a checkpoint "
     "(also --init)"},
    {"run", "steps", K::count, &O::steps, R::printed, 0, "optimizer steps; 0: from --tokens"},
    {"run", "tokens", K::count, &O::tokens, R::printed, 0,
     "tokens to train on, as 600k or 37.6B; 0: 20 per parameter"},
    {"run", "seed", K::count, &O::seed, R::identity, 0, "of weights, data order and samples"},
    {"run", "out", K::text, &O::out, R::free, 0,
     "run folder; the same command again continues the run in it"},
    {"run", "stop-after", K::duration, &O::stop_after_s, R::free, 0,
     "stop and save after this time, as 8h; 0: never"},
    {"run", "fresh", K::flag, &O::fresh, R::free, 0, "start anew: refuse a run folder that holds a run"},
    {"run", "allow-changes", K::flag, &O::allow_changes, R::free, 0,
     "continue although data, seed or tokens per step changed"},

    {"data", "data", K::texts, &O::data, R::free, 0,
     "training text (.txt .jsonl, .gz .zst of both), folders, '-', or token shards (.bin)"},
    {"data", "val-data", K::texts, &O::val_data, R::free, 0,
     "validation text or shards; empty: the end of --data"},
    {"data", "tokenizer", K::text, &O::tokenizer, R::free, 0,
     "tokenizer file, GPT-2's folder or a tiktoken file; empty: beside the shards, or made"},
    {"data", "tokenizer-kind", K::text, choice<&O::tokenizer_kind>(), R::free, 0, "what to make",
     words("bpe | bytes | char")},
    {"data", "split-pattern", K::text, &O::split_pattern, R::free, 0, "how bpe cuts text first",
     words_of(split_patterns)},
    {"data", "val-fraction", K::number, &O::val_fraction, R::free, 0,
     "share of the text kept for validation"},
    {"data", "data-order", K::text, choice<&O::data_order>(), R::identity, 0,
     "every token once an epoch, rows mixed or as they lie, or nanoGPT's random offsets",
     words("shuffle | sequential | random")},
    {"data", "cache", K::text, &O::cache, R::free, 0, "folder for token shards made from text"},

    {"export", "to", K::text, &O::to, R::free, 0, "folder to write; empty: hf in the run folder"},
    {"export", "format", K::text, choice<&O::format>(), R::free, 0,
     "numbers of the weights; auto: those they are stored in", words("auto | f32 | bf16 | fp16")},
    {"export", "weights", K::text, choice<&O::weights>(), R::free, 0,
     "as the forward pass saw them, or the master copy", words("packed | master")},
    {"export", "shard-bytes", K::bytes, &O::shard_bytes, R::free, 0,
     "most bytes of tensors in one file of weights"},
    {"export", "overwrite", K::flag, &O::overwrite, R::free, 0,
     "replace an earlier export in the same place"},

    {"watch", "eval-every", K::count, &O::eval_every, R::free, 0,
     "steps between evaluations; 0: only at the end"},
    {"watch", "eval-tokens", K::count, &O::eval_tokens, R::free, 0,
     "validation tokens per evaluation; 0: all"},
    {"watch", "eval-iters", K::count, &O::eval_iters, R::free, 0,
     "batches of --batch-size rows per evaluation; sets --eval-tokens"},
    {"watch", "save-every", K::count, &O::save_every, R::free, 0,
     "steps between checkpoints; 0: so that saving takes at most 1 % of the time"},
    {"watch", "keep", K::count, &O::keep, R::free, 0, "checkpoints kept, at least 2"},
    {"watch", "sample-every", K::count, &O::sample_every, R::free, 0,
     "steps between samples; 0: only at the end"},
    {"watch", "sample-tokens", K::count, &O::sample_tokens, R::free, 0, "tokens per sample; 0: never sample"},
    {"watch", "prompt", K::text, &O::prompt, R::free, 0, "what samples continue"},
    {"watch", "temperature", K::number, &O::temperature, R::free, 0, "of samples; 0: the likeliest token"},
    {"watch", "top-k", K::count, &O::top_k, R::free, 0, "sample among the k likeliest tokens; 0: all"},
    {"watch", "watts", K::text, &O::watts, R::free, 0,
     "drawn while it runs, best measured at the wall: 225; empty: as card or processor measure it"},
    {"watch", "price", K::text, &O::price, R::free, 0, "of a kWh, in any currency: 3.5TWD, 0.30EUR"},
    {"watch", "log-every", K::count, &O::log_every, R::free, 0, "steps between printed lines"},
    {"watch", "tensorboard", K::flag, &O::tensorboard, R::free, 0,
     "event files for TensorBoard in the run folder's tensorboard/"},
    {"watch", "quiet", K::flag, &O::quiet, R::free, 0, "print results and errors only"},
};

}  // namespace

std::span<const OptionSpec> option_table() { return kTable; }

const OptionSpec& option_of(const OptionSpec::Member& member) {
  return *std::find_if(std::begin(kTable), std::end(kTable),
                       [&](const OptionSpec& s) { return s.member == member; });
}

std::string option_name(std::string_view name) {
  std::string text(name);
  std::replace(text.begin(), text.end(), '_', '-');
  return text;
}

const OptionSpec* find_option(std::string_view name) {
  const std::string wanted = option_name(name);
  const auto it = std::find_if(std::begin(kTable), std::end(kTable),
                               [&](const OptionSpec& s) { return wanted == s.name; });
  return it == std::end(kTable) ? nullptr : &*it;
}

}  // namespace qt

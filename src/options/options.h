// Options: every knob of a run with its default, and nothing that decides (that is src/plan/planner.h).
//
// src/options/option_list.cpp lists each field once: name, unit, help. From that one table come the command
// line, the INI reader, the QTRAIN_* environment, --print-config and what a checkpoint stores.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/target.h"
#include "optim/rule_table.h"
#include "optim/schedule.h"
#include "quant/format_id.h"
#include "src/core/tensor.h"
#include "src/data/batches.h"
#include "src/model/config.h"
#include "src/tokenizer/tokenizer.h"

namespace qt {

// Closed choices that nothing else has a type for. Their words, and those of the other enumerations below, stand in the rows of
// the table, in the order of the enumerators.
enum class TrainedParams : std::uint8_t { full };
enum class Paging : std::uint8_t { automatic, on, off };
enum class WeightsOf : std::uint8_t { packed, master };  // what the forward pass saw, or what is updated

// Of the shape, vocab_size 0 is the tokenizer's, or 65,536 where there is none (plan).
struct Options : ModelShape {
  // [model]
  std::string model = "d4";

  // [memory]
  TrainedParams train = TrainedParams::full;
  FormatId quant = FormatId::none;
  bool ckpt_activations = false;
  std::optional<DType> dtype;             // none: bf16 where the device multiplies it natively, else f32
  std::optional<DType> grad_dtype;        // none: f32 where it fits, else bf16
  std::int64_t micro_batch = 0;           // rows; 0: the largest that fits
  std::int64_t loss_chunk = 0;            // tokens; 0: 128 MiB of logits
  DType master = DType::f32;              // of the master copy; bf16: rounded stochastically
  Paging paging = Paging::automatic;      // master and moments in host memory
  std::optional<DeviceKind> device;       // none: the card where there is one, else the cpu
  std::string arch = "auto";              // auto: the card's, or sm_89 where there is none
  GemmRoute gemm = GemmRoute::automatic;  // products with packed weights on a card
  std::int64_t vram_bytes = 0;            // 0: what the device has
  std::int64_t ram_bytes = 0;             // 0: what the machine has
  std::int64_t threads = 0;               // 0: all cores

  // [optim]
  const UpdateRule* optim = &rules::adamw8;
  double learning_rate = 0.0;  // one peak rate for all groups, not scaled by width; 0: the three below
  double matrix_lr = 2e-3;     // swept at d4 (docs/benchmarks.md)
  double embedding_lr = 0.2;   // scaled by (width / 768)^-0.5, as nanochat does
  double head_lr = 0.004;      // likewise
  double beta1 = 0.8;
  double beta2 = 0.95;
  double eps = 1e-10;
  double weight_decay = 0.0;
  double clip = 1.0;
  ScheduleKind schedule = ScheduleKind::warmdown;
  std::int64_t warmup_steps = 0;
  double warmdown = 0.2;
  double final_lr = 0.0;
  double min_lr = 0.0;           // what final_lr was computed from, if anything
  std::int64_t decay_steps = 0;  // where the schedule ends; 0: steps

  // [run]
  std::int64_t batch_tokens = 524288;  // per optimizer step
  std::int64_t batch_size = 0;  // rows; with the next, what batch_tokens was computed from, if anything
  std::int64_t gradient_accumulation_steps = 0;
  std::string init_from;    // empty | scratch | resume | file or folder of weights
  std::int64_t steps = 0;   // 0: from tokens
  std::int64_t tokens = 0;  // 0: 20 per parameter
  std::uint64_t seed = 42;
  std::string out = "runs/default";
  double stop_after_s = 0;     // 0: never
  bool fresh = false;          // refuse to continue a run that is already there
  bool allow_changes = false;  // resume although data, seed or tokens per step differ

  // [data]
  std::vector<std::string> data;  // text, JSONL, folders or token shards
  std::vector<std::string> val_data;
  std::string tokenizer;  // file; empty: beside the shards, or trained on the data
  TokenizerKind tokenizer_kind = TokenizerKind::bpe;  // where one has to be made
  std::string split_pattern = "nanochat";             // of the table of patterns (src/tokenizer/split.h)
  double val_fraction = 0.1;
  RowOrder data_order = RowOrder::shuffled;
  std::string cache;  // token cache of text input; empty: <first input>.tokens

  // [export]
  std::string to;               // folder; empty: <out>/hf
  std::optional<DType> format;  // none: what the weights are stored in
  WeightsOf weights = WeightsOf::packed;
  std::int64_t shard_bytes = 5'000'000'000;  // of one file of weights
  bool overwrite = false;                    // replace an earlier export

  // [watch]
  std::int64_t eval_every = 250;  // steps; 0: only at the end
  std::int64_t eval_tokens = 0;   // 0: the whole validation split
  std::int64_t eval_iters = 0;    // what eval_tokens was computed from, if anything
  std::int64_t save_every = 0;    // steps; 0: from the time a save takes
  std::int64_t keep = 2;          // checkpoints
  std::int64_t sample_every = 0;  // steps; 0: only at the end
  std::int64_t sample_tokens = 64;
  std::string prompt = "The";
  double temperature = 0.8;
  std::int64_t top_k = 0;
  std::string watts;  // assumed to be drawn, "225W"; empty: as measured
  std::string price;  // of a kWh, "3.5TWD"; empty: not known
  std::int64_t log_every = 1;
  bool tensorboard = true;
  bool quiet = false;
};

// What --init-from asks for: one of nanoGPT's words, or weights by name.
inline bool wants_resume(const std::string& init_from) { return init_from == "resume"; }
inline bool names_weights(const std::string& init_from) {
  return !init_from.empty() && init_from != "scratch" && !wants_resume(init_from);
}

}  // namespace qt

// Options: every knob of a run with its default, and nothing that decides (that is src/plan/planner.h).
//
// src/options/option_list.cpp lists each field once: name, unit, help. From that one table come the command
// line, the INI reader, the QTRAIN_* environment, --print-config and what a checkpoint stores.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/model/config.h"

namespace qt {

// Of the shape, vocab_size 0 is the tokenizer's, or 65,536 where there is none (plan).
struct Options : ModelShape {
  // [model]
  std::string model = "d4";

  // [memory]
  std::string train = "full";
  std::string quant = "none";
  bool ckpt_activations = false;
  std::string dtype = "auto";       // auto: bf16 where the device multiplies it natively, else f32
  std::string grad_dtype = "auto";  // auto: f32 where it fits, else bf16
  std::int64_t micro_batch = 0;     // rows; 0: the largest that fits
  std::int64_t loss_chunk = 0;      // tokens; 0: 128 MiB of logits
  std::string master = "f32";       // f32 | bf16-sr: the master copy, rounded stochastically
  std::string paging = "auto";      // auto | on | off: master and moments in host memory
  std::string device = "auto";      // auto | cpu | cuda
  std::string arch = "auto";        // auto: the card's, or sm_89 where there is none
  std::string gemm = "auto";        // auto | fused | scratch: products with packed weights on a card
  std::int64_t vram_bytes = 0;      // 0: what the device has
  std::int64_t ram_bytes = 0;       // 0: what the machine has
  std::int64_t threads = 0;         // 0: all cores

  // [optim]
  std::string optim = "adamw8";
  double learning_rate = 0.0;  // one peak rate for all groups, not scaled by width; 0: the three below
  double matrix_lr = 2e-3;     // swept at d4 (docs/benchmarks.md)
  double embedding_lr = 0.2;   // scaled by (width / 768)^-0.5, as nanochat does
  double head_lr = 0.004;      // likewise
  double beta1 = 0.8;
  double beta2 = 0.95;
  double eps = 1e-10;
  double weight_decay = 0.0;
  double clip = 1.0;
  std::string schedule = "warmdown";
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
  std::string tokenizer;               // file; empty: beside the shards, or trained on the data
  std::string tokenizer_kind = "bpe";  // bpe | bytes | char, where one has to be made
  std::string split_pattern = "nanochat";
  double val_fraction = 0.1;
  std::string data_order = "shuffle";  // shuffle | random (offsets, as nanoGPT)
  std::string cache;                   // token cache of text input; empty: <first input>.tokens

  // [export]
  std::string to;                            // folder; empty: <out>/hf
  std::string format = "auto";               // auto: what the weights are stored in
  std::string weights = "packed";            // packed: as the forward pass saw them | master
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

// Whether --init-from names weights, and not one of nanoGPT's words ("", "scratch", "resume").
inline bool names_weights(const std::string& init_from) {
  return !init_from.empty() && init_from != "scratch" && init_from != "resume";
}

}  // namespace qt

// Export: a trained model as a Hugging Face folder. Tensors stream from the checkpoint to the files; at no
// time is more than one matrix in memory.
//
// The folder is written beside its place, fsynced, read back and compared (config, vocabulary, every tensor,
// a forward pass), and only then renamed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "src/convert/param_source.h"
#include "src/core/tensor.h"
#include "src/io/file_system.h"
#include "src/model/config.h"
#include "src/model/params.h"
#include "src/tokenizer/tokenizer.h"

namespace qt {

struct ExportOptions {
  std::filesystem::path folder;
  DType type = DType::f32;                   // of every tensor: f32, bf16 or f16
  std::int64_t shard_bytes = 5'000'000'000;  // of tensors in one file; a larger tensor has a file of its own
  bool overwrite = false;                    // replaces an earlier export, and nothing else
};

struct ExportReport {
  std::int64_t files = 0;  // of weights
  std::int64_t bytes = 0;  // of weights
  std::int64_t tensors = 0;
  std::int64_t elems = 0;           // of the model's params
  std::int64_t rounded = 0;         // of these, how many the type does not hold exactly
  float worst_rounding = 0;         // the largest change of a logit that this makes
  std::int64_t checked_logits = 0;  // compared with those of the source, rounded
};

// `source` gives the params of make_params(config). ConfigError when the place is taken or the model cannot
// be represented; DataError for a value that is not finite, or beyond the largest f16; DiskError when writing
// fails or when what is read back differs. The place is then as it was.
ExportReport export_model(const ModelConfig& config, ParamSource& source, const Tokenizer& tokenizer,
                          const ExportOptions& options, FileSystem& fs = posix_fs());

}  // namespace qt

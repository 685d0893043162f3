// Starting a run from weights that another program, or another run, has trained.
#pragma once

#include <string>

#include "src/options/options.h"
#include "src/train/engine.h"

namespace qt {

// Whether a folder holds a vocabulary in a form that Tokenizer::load() takes.
bool has_tokenizer(const std::string& folder);

// Before any work: that --init-from is a safetensors file, or a folder with model.safetensors or, of a
// checkpoint of ours, state.safetensors. ConfigError, which says what to do about a pickle. Where config.json
// lies in the folder (tools/convert_nanogpt.py), the model takes its shape, as nanoGPT's does: n_layer,
// n_head, n_embd, bias and vocab_size are put into `options`, with a line in the log. A Hugging Face folder
// (src/convert/hf_config.h) gives its model, too. DataError when that file is wrong. Returns the family of a Hugging Face
// folder, else nullptr.
const Family* adopt_weights_shape(Options& options);

// For training: what adopt_weights_shape() does, and the folder's vocabulary becomes --tokenizer where none
// is named. ConfigError where the weights are of another family than --model: its training defaults would be
// wrong.
void adopt_weights(Options& options);

// Fills every master from the file's tensors (f32, bf16 or f16) with this model's names and shapes, or from
// the masters of a checkpoint, and encodes them. A position table may be longer than the model's sequence:
// the rest is left out. DataError naming the tensor when one is missing, is not used, has another shape, or
// holds what is no finite number.
void load_weights(Engine& engine, const std::string& path);

}  // namespace qt

// Starting a run from weights that another program, or another run, has trained.
#pragma once

#include <string>

#include "src/train/engine.h"

namespace qt {

// Whether --init-from names weights, and not one of nanoGPT's words ("", "scratch", "resume").
bool names_weights(const std::string& init_from);

// Fills every master from safetensors (f32, bf16 or f16; a file, or a folder with model.safetensors) with
// this model's names and shapes, as tools/convert_nanogpt.py writes them, and encodes them. A position table
// may be longer than the model's sequence: the rest is left out. An embedding or head may have fewer rows
// than a padded vocabulary: the other rows keep their init. ConfigError when there is no such file; DataError
// naming the tensor when one is missing, has another shape, or holds what is no finite number.
void load_weights(Engine& engine, const std::string& path);

}  // namespace qt

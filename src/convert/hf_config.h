// config.json and generation_config.json of a Hugging Face folder, to and from a model, by the HfForm of its
// family (src/model/family.h). A field of HfForm::fields with a value that this program cannot compute is refused by
// name; fields that are not listed are ignored. Tensors are src/convert/hf_names.h.
#pragma once

#include <filesystem>
#include <string>

#include "src/core/tensor.h"
#include "src/model/config.h"
#include "src/options/options.h"
#include "src/tokenizer/hf_tokenizer.h"

namespace qt {

// Every field that transformers reads, also where it is the default there. `type`: of the weights.
std::string hf_config_json(const ModelConfig& config, const HfSpecialIds& ids, DType type);
std::string hf_generation_config_json(const HfSpecialIds& ids);

// What config.json may have for model_type: "nanochat or gpt2".
std::string hf_model_types();

// Whether a folder has a config.json of one of them, as transformers writes it.
bool is_hf_folder(const std::filesystem::path& folder);

// Sets the options that name the folder's model: --model, --n-layer, --n-head, --n-embd, --n-kv-head, --bias, --norm-eps and
// --vocab-size; --seq-len where it is 0. DataError naming file and field. A GPT that was trained with the tanh form of GELU
// is taken with a warning. Returns the family that the file names.
const Family& set_hf_shape(const std::filesystem::path& folder, Options& options);

}  // namespace qt

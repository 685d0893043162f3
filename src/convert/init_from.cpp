#include "src/convert/init_from.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <vector>

#include "quant/tensor_names.h"
#include "src/convert/hf_config.h"
#include "src/convert/param_source.h"
#include "src/core/log.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/io/run_folder.h"
#include "src/model/family.h"
#include "src/plan/planner.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPieceElems = 1 << 20;

fs::path weights_file(const std::string& path) {
  if (!fs::is_directory(path)) return path;
  fs::path exported = fs::path(path) / "model.safetensors", state = fs::path(path) / kStateFile,
           index = fs::path(path) / "model.safetensors.index.json";
  if (fs::exists(exported)) return exported;
  return fs::exists(state) ? state : fs::exists(index) ? index : exported;
}

// Archives of torch.save, and pickles.
bool looks_like_pickle(const fs::path& file) {
  const std::string ending = file.extension().string();
  if (ending == ".pt" || ending == ".pth" || ending == ".ckpt" || ending == ".pkl") return true;
  std::ifstream in(file, std::ios::binary);
  char start[2] = {};
  in.read(start, 2);
  return in && start[0] == 'P' && start[1] == 'K';
}

}  // namespace

bool has_tokenizer(const std::string& folder) {
  for (const char* name : {kTokenizerFile, "tokenizer.json", "vocab.json"}) {
    if (fs::exists(fs::path(folder) / name)) return true;
  }
  return false;
}

void adopt_weights(Options& o) {
  const std::string named = o.model;
  const Family* const held = adopt_weights_shape(o);
  if (held == nullptr) return;
  if (held != find_family(named)) {
    const bool is_default = held == find_family(Options().model);
    throw ConfigError(
        fmt::format("--init-from '{}' holds a {}, another family than --model names", o.init_from,
                    held->noun),
        is_default ? "leave --model out: the folder tells it"
                   : fmt::format("add --model {}: a {} trains with other rates", held->name, held->noun));
  }
  if (o.tokenizer.empty() && has_tokenizer(o.init_from)) o.tokenizer = o.init_from;
}

const Family* adopt_weights_shape(Options& o) {
  const fs::path file = weights_file(o.init_from);
  if (!fs::is_regular_file(file)) {
    throw ConfigError(fmt::format("--init-from: there is no file '{}'", file.string()),
                      "name a safetensors file or a folder with model.safetensors; tools/convert_nanogpt.py "
                      "makes one of nanoGPT's ckpt.pt and of Hugging Face's GPT-2");
  }
  if (looks_like_pickle(file)) {
    throw ConfigError(
        fmt::format("--init-from: '{}' is a pickle, a program, and is never read", file.string()),
        fmt::format(
            "type `python tools/convert_nanogpt.py to-safetensors {} weights/`, then --init-from weights/",
            file.string()));
  }
  const fs::path config = file.parent_path() / "config.json";
  if (!fs::is_directory(o.init_from) || !fs::is_regular_file(config)) return nullptr;
  if (is_hf_folder(o.init_from)) {
    const Family& held = set_hf_shape(o.init_from, o);
    const ModelConfig c = model_from_options(o, 0);
    log_info("the model takes the shape of '{}': {}, {} layers, {} heads, width {}, vocabulary {}, {} tokens",
             o.init_from, o.model, c.n_layer, c.n_head, c.n_embd, c.vocab_size, c.seq_len);
    return &held;
  }
  const std::string origin = config.string();
  const Json json = parse_json(read_file(config, JsonLimits{}.max_bytes), origin);
  QT_CHECK(json.is_object(), DataError, "{}: not a JSON object", origin);
  // Written by tools/convert_nanogpt.py.
  const Family& family = families::gpt;
  if (find_family(o.model) != &family) {
    throw ConfigError(
        fmt::format("--init-from '{}' holds a {}, --model {} is none", o.init_from, family.noun, o.model),
        fmt::format("use --model {}", family.name));
  }
  o.n_layer = json_int(json, "n_layer", origin, 1);
  o.n_head = json_int(json, "n_head", origin, 1);
  o.n_embd = json_int(json, "n_embd", origin, 2);
  QT_CHECK(json.contains("bias") && json["bias"].is_boolean(), DataError,
           "{}: field 'bias' must be true or false", origin);
  o.bias = json["bias"].get<bool>();
  // Not padded: rows that were never trained would take part in the softmax.
  o.vocab_size = json_int(json, "vocab_size", origin, 2);
  log_info("the model takes the shape of '{}': {} layers, {} heads, width {}, biases {}, vocabulary {}",
           o.init_from, o.n_layer, o.n_head, o.n_embd, o.bias ? "on" : "off", o.vocab_size);
  return nullptr;
}

void load_weights(Engine& engine, const std::string& path) {
  const ModelConfig& config = engine.options().model;
  const ModelParams model = make_params(config);
  std::unique_ptr<ParamSource> source;
  if (fs::is_directory(path) && is_hf_folder(path)) {
    source = std::make_unique<HfParams>(path, config, model);
  } else {
    source = std::make_unique<NamedParams>(weights_file(path), config, model);
  }
  std::map<std::string, TensorView> views;
  for (const NamedView& v : engine.state()) views[v.name] = v.view;
  std::vector<float> piece;
  for (std::size_t i = 0; i < model.params.size(); ++i) {
    const Param& p = model.params[i];
    const TensorView master = views.at(master_of(p.name));
    for (std::int64_t first = 0; first < p.elems(); first += kPieceElems) {
      const std::int64_t count = std::min(kPieceElems, p.elems() - first);
      piece.resize(static_cast<std::size_t>(count));
      source->read(i, first, piece);
      upload_floats(engine.backend(), piece, master.flat(first, count));
    }
  }
  engine.encode_weights();
}

}  // namespace qt

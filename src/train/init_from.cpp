#include "src/train/init_from.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "src/core/half.h"
#include "src/core/log.h"
#include "src/io/safetensors.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPieceElems = 1 << 20;

template <class Half>
void widen(const std::byte* from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    Half half;
    std::memcpy(&half, from + i * sizeof half, sizeof half);
    to[i] = to_float(half);
  }
}

// Elements [first, first + to.size()) of a stored tensor. The file need not be aligned.
void read_floats(const StoredTensor& t, std::int64_t first, std::span<float> to) {
  const std::byte* from = t.data + first * stored_bytes(t.type);
  if (t.type == StoredType::f32) {
    std::memcpy(to.data(), from, to.size_bytes());
  } else if (t.type == StoredType::bf16) {
    widen<bf16>(from, to);
  } else {
    widen<f16>(from, to);
  }
}

// How many rows of the stored tensor are taken. DataError when its shape is not the param's.
std::int64_t rows_to_take(const StoredTensor& t, const Param& p, const std::string& file) {
  const bool is_vector = p.group == ParamGroup::norm;
  const std::vector<std::int64_t> wanted =
      is_vector ? std::vector<std::int64_t>{p.K} : std::vector<std::int64_t>{p.N, p.K};
  const bool is_positions = p.name.ends_with("wpe.weight");
  const bool is_vocabulary = !is_vector && !is_positions && p.group != ParamGroup::matrix;
  bool fits = t.shape == wanted;
  if (!fits && t.shape.size() == 2 && !is_vector && t.shape[1] == p.K && t.shape[0] > 0)
    fits = (is_positions && t.shape[0] > p.N) || (is_vocabulary && t.shape[0] < p.N);
  if (!fits) {
    throw DataError(fmt::format("{}: tensor '{}' has shape [{}], this model's is [{}]", file, t.name,
                                fmt::join(t.shape, ", "), fmt::join(wanted, ", ")),
                    "name the shape that the weights have with --model, --n-layer, --n-head, --n-embd, "
                    "--vocab-size and --bias");
  }
  return is_vector ? 1 : std::min(p.N, t.shape[0]);
}

}  // namespace

bool names_weights(const std::string& init_from) {
  return !init_from.empty() && init_from != "scratch" && init_from != "resume";
}

void load_weights(Engine& engine, const std::string& path) {
  const fs::path file = fs::is_directory(path) ? fs::path(path) / "model.safetensors" : fs::path(path);
  if (!fs::is_regular_file(file)) {
    throw ConfigError(fmt::format("--init-from: there is no file '{}'", file.string()),
                      "name a safetensors file or a folder with model.safetensors; tools/convert_nanogpt.py "
                      "makes one of nanoGPT's ckpt.pt and of Hugging Face's GPT-2");
  }
  const Safetensors weights = Safetensors::open(file);
  std::map<std::string, const StoredTensor*> stored;
  for (const StoredTensor& t : weights.tensors()) stored[t.name] = &t;
  std::map<std::string, TensorView> masters;
  for (const NamedView& v : engine.state()) masters[v.name] = v.view;

  std::vector<float> piece(static_cast<std::size_t>(kPieceElems));
  for (const Param& p : engine.model().params()) {
    const auto found = stored.find(p.name);
    if (found == stored.end()) {
      throw DataError(fmt::format("{}: tensor '{}' is missing", file.string(), p.name),
                      "names are this program's: tools/convert_nanogpt.py translates those of nanoGPT and "
                      "Hugging Face; biases are there only with --bias");
    }
    const StoredTensor& t = *found->second;
    QT_CHECK(t.type == StoredType::f32 || t.type == StoredType::bf16 || t.type == StoredType::f16, DataError,
             "{}: tensor '{}' is neither f32, bf16 nor f16", file.string(), t.name);
    const std::int64_t elems = rows_to_take(t, p, file.string()) * p.K;
    const TensorView master = masters.at("master." + p.name);
    for (std::int64_t first = 0; first < elems; first += kPieceElems) {
      const std::span<float> part(piece.data(),
                                  static_cast<std::size_t>(std::min(kPieceElems, elems - first)));
      read_floats(t, first, part);
      const auto bad = std::find_if(part.begin(), part.end(), [](float x) { return !std::isfinite(x); });
      QT_CHECK(bad == part.end(), DataError, "{}: tensor '{}', element {}: not a finite number",
               file.string(), t.name, first + (bad - part.begin()));
      engine.backend().upload(std::as_bytes(part),
                              master.flat(first, static_cast<std::int64_t>(part.size())));
    }
    stored.erase(found);
  }
  // The head of a tied model may be stored once more.
  if (engine.options().model.tied_head) stored.erase("lm_head.weight");
  for (const auto& [name, t] : stored) log_warning("{}: tensor '{}' is not used", file.string(), name);
  engine.encode_weights();
}

}  // namespace qt

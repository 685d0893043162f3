// What the tests of exports share: runs to export, params from memory, reading what was written without the
// code under test.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "src/convert/export.h"
#include "src/core/half.h"
#include "src/io/checkpoint.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "tests/support/cli.h"
#include "tests/support/message_of.h"

namespace qt::test {

inline const std::string kGolden = std::string(QTRAIN_SOURCE_DIR) + "/tests/golden/";

// f32 values of a stored tensor.
inline std::vector<float> values_of(const StoredTensor& t) {
  std::vector<float> values(static_cast<std::size_t>(t.elems()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (t.type == StoredType::f32) {
      std::memcpy(&values[i], t.data + 4 * i, 4);
    } else {
      std::uint16_t bits = 0;
      std::memcpy(&bits, t.data + 2 * i, 2);
      values[i] = t.type == StoredType::bf16 ? to_float(bf16{bits}) : to_float(f16{bits});
    }
  }
  return values;
}

// File names and hashes.
inline std::map<std::string, std::string> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files[entry.path().filename()] = InputFile(entry.path()).hash_hex();
  return files;
}

// Params from memory; what a second reader gets can be made to differ.
class MemoryParams : public ParamSource {
 public:
  explicit MemoryParams(const ModelParams& model) {
    std::uint32_t state = 7;
    for (const Param& p : model.params) {
      auto& values = values_.emplace_back(static_cast<std::size_t>(p.elems()));
      for (float& v : values) {
        state = state * 1664525u + 1013904223u;
        v = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-33f;
      }
    }
  }
  void read(std::size_t index, std::int64_t first, std::span<float> out) override {
    std::copy_n(values_[index].begin() + first, out.size(), out.begin());
    if (++reads_ == change_at) out.front() += 1;
  }

  DType type() const override { return DType::f32; }

  std::vector<std::vector<float>> values_;
  std::int64_t reads_ = 0, change_at = -1;
};

inline ModelConfig small_config(const std::string& model) {
  const bool gpt = model == "gpt";
  ModelShape o{.vocab_size = 265, .seq_len = 24, .n_layer = 2, .n_head = 4, .n_embd = 32};
  if (gpt) o.bias = true;
  return model_by_name(model, o);
}

class ExportCli : public Cli {
 protected:
  void train_nanochat() { expect_success(run(train(dir / "run", "3"))); }
  void train_gpt(const Words& more = {}) {
    const Words words{
        "--model",        "gpt",          "--n-layer",        "2",    "--n-head",  "2",
        "--n-embd",       "64",           "--quant",          "nf4",  "--seq-len", "32",
        "--batch-tokens", "128",          "--dtype",          "f32",  "--threads", "1",
        "--eval-tokens",  "256",          "--sample-tokens",  "4",    "--data",    dir / "text.txt",
        "--cache",        dir / "tokens", "--tokenizer-kind", "char", "--steps",   "3",
        "--out",          dir / "run"};
    expect_success(run(words + more));
  }
  Ended exported(const std::string& to, const Words& more = {}) const {
    return run(Words{"export", "--out", dir / "run", "--to", dir / to} + more);
  }
  std::filesystem::path checkpoint() const { return std::filesystem::path(dir / "run") / checkpoint_name(3); }
};

}  // namespace qt::test

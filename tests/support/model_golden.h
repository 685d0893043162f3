// The files under tests/golden that tools/make_golden_nanochat.py and make_golden_gpt2.py made;
// tools/README.md lists what each holds.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "optim/optimizer.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "src/model/config.h"
#include "tests/support/bound.h"

namespace qt::test {

class GoldenModel {
 public:
  // `name`: "nanochat_forward", "gpt2_trajectory", ...
  explicit GoldenModel(const std::string& name)
      : file_(Safetensors::open(std::filesystem::path(QTRAIN_SOURCE_DIR) / "tests/golden" /
                                (name + ".safetensors"))) {}

  std::vector<float> floats(const std::string& name) const { return read<float>(name, StoredType::f32); }
  std::vector<std::int32_t> ints(const std::string& name) const {
    return read<std::int32_t>(name, StoredType::i32);
  }
  // Of the weights that have a gradient in the file.
  std::set<std::string> weights() const {
    constexpr std::string_view kGradient = "grad.";
    std::set<std::string> names;
    for (const StoredTensor& t : file_.tensors()) {
      if (t.name.starts_with(kGradient)) names.insert(t.name.substr(kGradient.size()));
    }
    return names;
  }
  std::vector<std::int64_t> shape(const std::string& name) const { return file_.get(name).shape; }

  Json json(const std::string& key) const { return parse_json(file_.metadata().at(key), file_.file()); }

  ModelConfig config() const {
    const Json j = json("config");
    if (j.contains("block_size")) {
      ModelConfig c = model_by_name("gpt", {.vocab_size = j.at("vocab_size"),
                                            .seq_len = j.at("block_size"),
                                            .n_layer = j.at("n_layer"),
                                            .n_head = j.at("n_head"),
                                            .n_embd = j.at("n_embd"),
                                            .bias = j.at("bias").get<bool>()});
      c.norm_eps = j.at("norm_eps");
      return c;
    }
    ModelConfig c;
    c.name = "golden";
    c.n_layer = j.at("n_layer"), c.n_embd = j.at("n_embd"), c.n_head = j.at("n_head");
    c.n_kv_head = j.at("n_kv_head"), c.vocab_size = j.at("vocab_size"), c.seq_len = j.at("seq_len");
    c.logit_softcap = j.at("softcap"), c.norm_eps = j.at("norm_eps"), c.rope_base = j.at("rope_base");
    return c;
  }

  // "adamw" with the rates of the metadata; `settings` is its "optimizer" or one variant of it.
  static OptimizerOptions optimizer(const Json& settings, bool paged) {
    OptimizerOptions o;
    o.rule = &rules::adamw;
    o.peak_lr[static_cast<std::size_t>(ParamGroup::matrix)] = settings.at("lr_matrix");
    o.peak_lr[static_cast<std::size_t>(ParamGroup::norm)] = settings.at("lr_matrix");
    o.peak_lr[static_cast<std::size_t>(ParamGroup::embedding)] = settings.at("lr_embedding");
    o.peak_lr[static_cast<std::size_t>(ParamGroup::head)] = settings.at("lr_head");
    o.beta1 = settings.at("beta1"), o.beta2 = settings.at("beta2"), o.eps = settings.at("eps");
    o.weight_decay = settings.at("weight_decay"), o.max_norm = settings.at("clip_norm");
    o.paged = paged;
    return o;
  }

 private:
  template <class T>
  std::vector<T> read(const std::string& name, StoredType type) const {
    const StoredTensor& t = file_.get(name);
    EXPECT_EQ(t.type, type) << name;
    std::vector<T> x(static_cast<std::size_t>(t.elems()));
    std::memcpy(x.data(), t.data, t.bytes);
    return x;
  }

  Safetensors file_;
};

inline double max_norm(const std::vector<float>& x) {
  double largest = 0;
  for (const float v : x) largest = std::max(largest, std::abs(static_cast<double>(v)));
  return largest;
}

// got against want, within `share` of want's max-norm.
inline Ratio max_norm_ratio(const std::vector<float>& got, const std::vector<float>& want, double share) {
  Ratio r;
  EXPECT_EQ(got.size(), want.size());
  const double tolerance = share * max_norm(want);
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    r.take(static_cast<double>(got[i]), static_cast<double>(want[i]), tolerance, i);
  }
  return r;
}

// "attn.c_q" of "transformer.h.0.attn.c_q.weight", "wte" of "transformer.wte.weight", "ln_1.bias" of a bias.
inline std::string part_of(const std::string& name) {
  std::string s = name.substr(0, name.rfind(".weight"));
  if (s.ends_with(".bias")) return part_of(s.substr(0, s.size() - 5)) + ".bias";
  if (const std::size_t layer = s.find(".h."); layer != std::string::npos)
    return s.substr(s.find('.', layer + 3) + 1);
  return s.substr(s.rfind('.') + 1);
}

// Fails where the ratio passes 1, and puts it into the table that the program prints at its end.
inline void expect_within(const std::string& what, const std::string& field, DType dtype, const Ratio& r) {
  EXPECT_LE(r.worst, 1) << what << ", " << field << ": " << r.text();
  RatioTable::instance().add(what, field, dtype, r);
}

}  // namespace qt::test

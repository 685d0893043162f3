#include "src/plan/remedy_list.h"

#include <algorithm>
#include <utility>

#include "src/core/units.h"
#include "src/model/model.h"
#include "src/plan/estimate.h"

namespace qt {

namespace {

// Fewer tokens than this are too few rows for a product.
constexpr std::int64_t kLeastChunkTokens = 16;

std::function<std::string(const Plan&)> text(std::string fixed) {
  return [fixed = std::move(fixed)](const Plan&) { return fixed; };
}

// What a change is judged by.
struct Situation {
  const Plan& run;
  const Options& options;
  const Target& target;

  bool on_card() const { return target.kind == DeviceKind::cuda; }
};

// Each function adds the changes of one option that the situation allows.

void micro_batch(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  if (o.micro_batch > 1) {
    all.push_back({.loss = Loss::time,
                   .apply = [](Options& to) { to.micro_batch = 0; },
                   .cost =
                       [](const Plan& r) {
                         return fmt::format(
                             "the same {} tokens per step in {} smaller micro-batches: nothing but rounding",
                             format_thousands(r.config.engine.step_tokens()), r.config.engine.accumulation);
                       }});
  }
}

void fused_products(const Situation& s, std::vector<Change>& all) {
  const ModelOptions& m = s.run.config.engine.layout;
  if (s.on_card() && m.weights != FormatId::none && s.target.gemm == GemmRoute::scratch) {
    all.push_back(
        {.loss = Loss::time,
         .apply = [](Options& to) { to.gemm = GemmRoute::fused; },
         .cost = text("weights are expanded inside each product: slower above 2,048 tokens at once")});
  }
}

void loss_chunk(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  const std::int64_t tokens = s.run.config.engine.micro_batch_tokens();
  std::int64_t chunk =
      o.loss_chunk > 0 ? o.loss_chunk : kLogitsChunkBytes / (4 * s.run.config.engine.model.vocab_size);
  chunk = std::min(std::max<std::int64_t>(chunk, 1), tokens);
  for (const std::int64_t divisor : {4, 16}) {
    const std::int64_t smaller = chunk / divisor;
    if (smaller < kLeastChunkTokens) break;
    all.push_back({.loss = Loss::time,
                   .apply = [smaller](Options& to) { to.loss_chunk = smaller; },
                   .cost = text("the head's products are smaller: nothing but rounding")});
  }
}

void recompute(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  if (!o.ckpt_activations) {
    all.push_back({.loss = Loss::time,
                   .apply = [](Options& to) { to.ckpt_activations = true; },
                   .cost = text("each block is computed twice, to the same bits")});
  }
}

void paging(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  const bool paged = s.run.config.engine.optim.paged;
  if (o.paging == Paging::off) {
    all.push_back({.loss = Loss::time,
                   .apply = [](Options& to) { to.paging = Paging::on; },
                   .cost = text("master and moments move to the host's memory, to the same bits"),
                   .trades = true});
  } else if (paged && s.on_card()) {
    all.push_back({.loss = Loss::time,
                   .apply = [](Options& to) { to.paging = Paging::off; },
                   .cost = text("nothing: master and moments stay on the device, to the same bits"),
                   .trades = true});
  }
}

void fewer_checkpoints(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  if (o.keep > 2) {
    all.push_back({.loss = Loss::time,
                   .apply = [](Options& to) { to.keep = 2; },
                   .cost = text("fewer checkpoints to go back to")});
  }
}

void gradients_in_bf16(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  const ModelOptions& m = s.run.config.engine.layout;
  if (o.grad_dtype == DType::f32 && m.compute == DType::bf16) {
    all.push_back({.loss = Loss::rounding,
                   .apply = [](Options& to) { to.grad_dtype = DType::bf16; },
                   .cost = text("sums of gradients over micro-batches are rounded to bf16")});
  }
}

void moments_in_8_bits(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  if (o.optim == &rules::adamw) {
    all.push_back({.loss = Loss::rounding,
                   .apply = [](Options& to) { to.optim = &rules::adamw8; },
                   .cost = text("moments of the block matrices are kept in 8 bits")});
  }
}

void bf16(const Situation& s, std::vector<Change>& all) {
  const ModelOptions& m = s.run.config.engine.layout;
  if (m.compute == DType::f32) {
    all.push_back(
        {.loss = Loss::rounding,
         .apply = [](Options& to) { to.dtype = DType::bf16; },
         .cost = text(s.target.native_bf16 ? "activations and weights are rounded to bf16"
                                           : "activations and weights are rounded to bf16, which this device "
                                             "has no instructions for: slower")});
  }
}

void master_in_bf16(const Situation& s, std::vector<Change>& all) {
  const Options& o = s.options;
  const ModelOptions& m = s.run.config.engine.layout;
  if (o.master == DType::f32 && m.compute != DType::f16) {
    all.push_back(
        {.loss = Loss::rounding,
         .apply = [](Options& to) { to.master = DType::bf16; },
         .cost = text("master weights in bf16, rounded at random: noise, no bias; no cost was seen at d2 "
                      "(docs/benchmarks.md)")});
  }
}

void packed_weights(const Situation& s, std::vector<Change>& all) {
  const ModelOptions& m = s.run.config.engine.layout;
  if (m.weights == FormatId::none && m.compute != DType::f16) {
    all.push_back(
        {.loss = Loss::weights,
         .apply = [](Options& to) { to.quant = FormatId::nf4; },
         .cost =
             [](const Plan& r) {
               const auto params = static_cast<double>(r.config.engine.model.matrix_params());
               const auto trained = static_cast<double>(r.config.steps * r.config.engine.step_tokens());
               const double bits = format_info(FormatId::nf4).bits_per_weight;
               return fmt::format(
                   "weights of the blocks are seen in {:g} bits: some {:.2g} nats per token by others' scaling "
                   "law, none seen at d4 (docs/benchmarks.md)",
                   bits, expected_loss_cost(params, trained, bits, params, trained));
             }});
  }
}

// In the order in which equal ones are proposed. A run that has begun keeps what the checkpoint's tensors are made of.
struct Remedy {
  void (*add)(const Situation& s, std::vector<Change>& all);
  bool also_when_begun;
};
constexpr Remedy kRemedies[] = {
    {micro_batch, true}, {fused_products, true},    {loss_chunk, true},        {recompute, true},
    {paging, true},      {fewer_checkpoints, true}, {gradients_in_bf16, true}, {moments_in_8_bits, false},
    {bf16, false},       {master_in_bf16, false},   {packed_weights, false},
};

}  // namespace

std::vector<Change> changes_for(const Plan& run, const PlanRequest& request, bool begun) {
  const Situation situation{.run = run, .options = request.options, .target = request.target};
  std::vector<Change> all;
  for (const Remedy& remedy : kRemedies) {
    if (remedy.also_when_begun || !begun) remedy.add(situation, all);
  }
  return all;
}

}  // namespace qt

// The key/value cache: whatever pieces the tokens come in, the Decoder's logits are those of the whole
// sequence.
#include <algorithm>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/model/decoder.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/model_golden.h"

namespace qt::test {
namespace {

constexpr double kF32Share = 1e-5;  // of the logits' max-norm, as in test_model_golden.cpp

using Ids = std::vector<std::int32_t>;

// Feeds `ids` in pieces of these sizes to one Decoder, a text at a time, and returns the logits that followed
// each piece.
std::vector<Floats> decode(const ModelConfig& config, const ModelOptions& options,
                           const std::function<Floats(const Param&)>& weights, const std::vector<Ids>& texts,
                           const std::vector<std::int64_t>& pieces) {
  std::vector<Floats> after;
  ModelOptions forward_only = options;
  forward_only.gradients = true;  // the optimizer encodes the weights
  OptimizerOptions optim;
  optim.rule = &rules::adamw;
  run_planned(config, forward_only, optim, [&](Parts& parts) {
    for (const NamedView& piece : parts.optimizer->state()) {
      for (const Param& p : parts.model.params()) {
        if (piece.name == "master." + p.name) write_floats(parts.backend, piece.view, weights(p));
      }
    }
    {
      const PhaseScope phase(parts.step, "init");
      parts.optimizer->encode_weights(parts.step);
    }
    const PhaseScope phase(parts.step, "sample");
    Decoder decoder(parts.model, config.seq_len);
    after.clear();
    for (const Ids& text : texts) {
      decoder.reset();
      std::span<const std::int32_t> left(text);
      for (const std::int64_t n : pieces) {
        Floats logits(static_cast<std::size_t>(config.vocab_size));
        decoder.feed(left.first(static_cast<std::size_t>(n)), logits);
        left = left.subspan(static_cast<std::size_t>(n));
        after.push_back(std::move(logits));
      }
      EXPECT_TRUE(left.empty());
      EXPECT_EQ(decoder.position(), static_cast<std::int64_t>(text.size()));
    }
  });
  return after;
}

const GoldenModel& golden() {
  static const GoldenModel file("nanochat_forward");
  return file;
}

Floats golden_weights(const Param& p) { return golden().floats(p.name); }

std::vector<Ids> golden_rows() {
  const Ids all = golden().ints("ids");
  const auto T = static_cast<std::ptrdiff_t>(golden().config().seq_len);
  return {Ids(all.begin(), all.begin() + T), Ids(all.begin() + T, all.end())};
}

Floats golden_logits(std::size_t row, std::int64_t position) {
  const ModelConfig c = golden().config();
  const Floats all = golden().floats("logits");
  const auto first =
      static_cast<std::ptrdiff_t>((static_cast<std::int64_t>(row) * c.seq_len + position) * c.vocab_size);
  return Floats(all.begin() + first, all.begin() + first + static_cast<std::ptrdiff_t>(c.vocab_size));
}

TEST(Decoder, GivesTheGoldenLogitsWhateverThePieces) {
  const ModelConfig c = golden().config();
  ASSERT_EQ(c.seq_len, 24);
  const std::vector<std::vector<std::int64_t>> cuts = {
      std::vector<std::int64_t>(24, 1), {24}, {5, 1, 7, 11}, {23, 1}, {1, 23}};
  for (const auto& pieces : cuts) {
    SCOPED_TRACE(fmt::format("{} pieces", pieces.size()));
    const std::vector<Floats> got = decode(c, {}, golden_weights, golden_rows(), pieces);
    ASSERT_EQ(got.size(), 2 * pieces.size());
    for (std::size_t row = 0, at = 0; row < 2; ++row) {
      std::int64_t position = -1;
      for (const std::int64_t n : pieces) {
        position += n;
        expect_within("decoder", "logits", DType::f32,
                      max_norm_ratio(got[at++], golden_logits(row, position), kF32Share));
      }
    }
  }
}

TEST(Decoder, WouldCatchACacheThatIsOneTokenOff) {
  std::vector<Ids> rows = golden_rows();
  std::swap(rows[0][21], rows[0][22]);
  const std::vector<Floats> got =
      decode(golden().config(), {}, golden_weights, rows, std::vector<std::int64_t>(24, 1));
  EXPECT_GT(max_norm_ratio(got[23], golden_logits(0, 23), kF32Share).worst, 100);
  EXPECT_LE(max_norm_ratio(got[20], golden_logits(0, 20), kF32Share).worst, 1) << "nothing looks ahead";
}

// 300 tokens pass through the decoder in three pieces of at most 128.
TEST(Decoder, AgreesWithTheModelOnLongPromptsAndPackedWeights) {
  ModelConfig c;
  c.name = "long";
  c.n_layer = 2, c.n_head = 2, c.n_kv_head = 1, c.n_embd = 64, c.vocab_size = 61, c.seq_len = 300;
  const Ids text = random_ids(300, c.vocab_size, 5);
  for (const FormatId format : {FormatId::none, FormatId::nf4}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("{} {}", format == FormatId::nf4 ? "nf4" : "none", dtype_name(compute)));
      EngineOptions o;
      o.model = c;
      o.layout.weights = format;
      o.layout.compute = compute;
      o.with_logits = true;
      o.optim.rule = &rules::adamw;
      TestEngine engine(o);
      engine.set_masters([](const Param& p) { return lively_weights(p); });
      const Floats all = engine.logits(text);
      const auto row = [&](std::int64_t t) {
        const auto first = static_cast<std::ptrdiff_t>(t * c.vocab_size);
        return Floats(all.begin() + first, all.begin() + first + static_cast<std::ptrdiff_t>(c.vocab_size));
      };
      const auto weights = [](const Param& p) { return lively_weights(p); };
      // The same kernels in another cut: f32 differs by the order of sums, bf16 where one of those flips a
      // rounding.
      const double share = compute == DType::f32 ? kF32Share : 0x1p-6;
      const auto got = decode(c, o.layout, weights, {text}, {250, 1, 1, 48});
      EXPECT_LE(max_norm_ratio(got[0], row(249), share).worst, 1);
      EXPECT_LE(max_norm_ratio(got[1], row(250), share).worst, 1);
      EXPECT_LE(max_norm_ratio(got[2], row(251), share).worst, 1);
      EXPECT_LE(max_norm_ratio(got[3], row(299), share).worst, 1);
      EXPECT_GT(max_norm_ratio(got[3], row(298), share).worst, 1) << "the neighbour's logits must not pass";
      const auto whole = decode(c, o.layout, weights, {text}, {300});
      EXPECT_LE(max_norm_ratio(whole[0], row(299), share).worst, 1);
    }
  }
}

TEST(Decoder, RefusesMoreThanItsCapacityAndKeepsWhatItHas) {
  const ModelConfig c = golden().config();
  bool refused = false;
  Floats after;
  run_planned(c, {.gradients = false}, std::nullopt, [&](Parts& parts) {
    for (const Param& p : parts.model.params())
      write_floats(parts.backend, p.weight.dense, golden_weights(p));
    const PhaseScope phase(parts.step, "sample");
    Decoder decoder(parts.model, 24);
    after.assign(static_cast<std::size_t>(c.vocab_size), 0.0f);
    const Ids row = golden_rows()[0];
    decoder.feed(std::span(row).first(20), after);
    refused = false;
    try {
      decoder.feed(std::span(row).first(5), after);
    } catch (const ConfigError&) {
      refused = true;
    }
    decoder.feed(std::span(row).subspan(20), after);
  });
  EXPECT_TRUE(refused);
  EXPECT_LE(max_norm_ratio(after, golden_logits(0, 23), kF32Share).worst, 1);
}

}  // namespace
}  // namespace qt::test

// A format that no production file knows (tests/support/two_planes.h) through a run: planned on the null backend,
// trained, saved, loaded and continued, on the cpu and on the simulator, and read back by who exports it.
#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"
#include "src/convert/param_source.h"
#include "src/io/safetensors.h"
#include "src/train/run_state.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

constexpr std::int64_t kSteps = 4;

EngineOptions two_planes_options() {
  EngineOptions options = tiny_engine_options({.rows = 1, .accumulation = 1});
  options.layout.weights = TwoPlanes::kId;
  options.sample_tokens = 0;
  return options;
}

std::unique_ptr<Engine> engine_on(const Target& target) {
  const EngineOptions options = two_planes_options();
  auto backend = target.kind == DeviceKind::cpu ? make_backend("cpu", target) : make_cuda_backend(target);
  return std::make_unique<Engine>(std::move(backend), options, Engine::rehearse(options, target));
}

class TwoPlanesRun : public ::testing::TestWithParam<const char*> {
 protected:
  TempDir dir;
  TinyData data{dir.path()};
  Target target = GetParam() == std::string("cpu") ? cpu_target(2) : cuda_target(86);

  // Trains the windows [first, end); window n applies update n + 1.
  void train(Engine& engine, std::int64_t first, std::int64_t end) {
    const TokenBatches batches = data.batches(engine.options().model.seq_len);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(engine.options().micro_batch_tokens())),
        targets(ids.size());
    for (std::int64_t step = first; step < end; ++step) {
      const auto fetch = [&](std::int64_t) {
        batches.fill(step, 1, ids, targets);
        return HostBatch{ids, targets};
      };
      ASSERT_TRUE(engine.train_step(fetch, {}, 1.0, step + 1).finite);
    }
  }
};

TEST_P(TwoPlanesRun, IsPlannedWithTheBytesOfTheFormat) {
  EngineOptions nf4 = two_planes_options();
  nf4.layout.weights = FormatId::nf4;
  const auto engine = engine_on(target);
  std::int64_t elems = 0, blocks = 0, fewer_bytes = 0, fewer_planned = 0;
  const auto planned = [](std::int64_t bytes) {
    return (bytes + kRequestAlignment - 1) / kRequestAlignment * kRequestAlignment;
  };
  for (const Param& p : engine->model().params()) {
    if (!p.weight.is_packed()) continue;
    const PackedView& w = p.weight.packed;
    EXPECT_EQ(w.format, TwoPlanes::kId) << p.name;
    EXPECT_EQ(w.absmax.dtype, DType::u8) << p.name;
    elems += p.elems();
    blocks += w.absmax.elems();
    fewer_bytes += packed_bytes(FormatId::nf4, p.elems()) - w.bytes();
    fewer_planned += planned(code_bytes(FormatId::nf4, p.elems())) - planned(w.codes.bytes()) +
                     planned(4 * scale_count(FormatId::nf4, p.elems())) - planned(w.absmax.bytes());
  }
  EXPECT_EQ(fewer_bytes, elems / 4 + 3 * blocks) << "two bits instead of four, scales of one byte";
  EXPECT_EQ(
      Engine::rehearse(nf4, target).state.bytes - Engine::rehearse(two_planes_options(), target).state.bytes,
      fewer_planned);
  engine->init_weights(7);
  train(*engine, 0, 1);
  EXPECT_EQ(engine->used_device_bytes(), Engine::rehearse(two_planes_options(), target).device_bytes());
}

TEST_P(TwoPlanesRun, ContinuesFromACheckpointBitForBit) {
  const auto straight = engine_on(target);
  straight->init_weights(7);
  train(*straight, 0, kSteps);

  CheckpointStore store(dir / "run", 2);
  RunState state;
  state.step = state.applied = state.window = kSteps / 2;
  {
    const auto engine = engine_on(target);
    engine->init_weights(7);
    const std::string before = state_hash(*engine);
    train(*engine, 0, kSteps / 2);
    EXPECT_NE(before, state_hash(*engine));
    store.save(*engine, state);
  }
  const auto engine = engine_on(target);
  std::string explanation;
  EXPECT_EQ(store.load(store.newest(explanation), *engine).step, kSteps / 2);
  train(*engine, kSteps / 2, kSteps);
  EXPECT_EQ(state_hash(*straight), state_hash(*engine));
}

// What is exported: the canonical weights out of the file's codes, in pieces that begin anywhere.
TEST_P(TwoPlanesRun, IsReadBackFromACheckpoint) {
  const auto engine = engine_on(target);
  engine->init_weights(7);
  train(*engine, 0, 1);
  CheckpointStore store(dir / "run", 2);
  RunState state;
  state.step = 1;
  store.save(*engine, state);
  std::string explanation;
  const std::string checkpoint = store.newest(explanation);
  EXPECT_EQ(Safetensors::open(checkpoint + "/weights.safetensors").metadata().at("packed"), TwoPlanes::kName);

  const ModelParams model = make_params(two_planes_options().model);
  CheckpointParams packed(checkpoint, model, WeightsOf::packed, two_planes_options().layout);
  CheckpointParams masters(checkpoint, model, WeightsOf::master, two_planes_options().layout);
  for (std::size_t i = 0; i < model.params.size(); ++i) {
    const Param& p = model.params[i];
    if (!engine->model().params()[i].weight.is_packed()) continue;
    std::vector<float> got(static_cast<std::size_t>(p.elems())), master(got.size());
    packed.read(i, 0, std::span(got).first(37));
    packed.read(i, 37, std::span(got).subspan(37));
    masters.read(i, 0, master);
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(code_bytes(TwoPlanes::kId, p.elems())));
    std::vector<TwoPlanes::Scale> scales(static_cast<std::size_t>(scale_count(TwoPlanes::kId, p.elems())));
    std::vector<float> want(got.size());
    TwoPlanes::quantize(std::span<const float>(master), codes.data(), scales.data());
    TwoPlanes::dequantize(codes.data(), scales.data(), 0, std::span(want));
    EXPECT_EQ(got, want) << p.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TwoPlanesRun, ::testing::Values("cpu", "sim"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qt::test

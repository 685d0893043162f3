// The loss head at the shapes of d12, d20 and d32, chunk by chunk as training runs it: the products of one
// chunk of logits (forward, for the input and for the weight) and the cross-entropy between them, which turns
// the logits into their gradient in place. Milliseconds, TFLOP/s of the products, GB/s of the cross-entropy,
// and the time that it adds to theirs.
//
//   bench_loss --device cuda
//
// --models 12,20,32 chooses; --vocab-size (default 65536), --loss-chunk and all other options are qtrain's.
#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "bench/harness.h"
#include "src/core/units.h"
#include "src/model/model.h"
#include "src/options/option_table.h"
#include "src/plan/machine.h"

namespace qt::bench {
namespace {

constexpr DType kDType = DType::bf16;
constexpr std::int64_t kVocabSize = 65536;

void run(std::vector<std::string> words) {
  const auto models = counts_of(take_option(words, "models", "12,20,32"), "models");
  const Options o = load_options(words).options;
  const Target target = target_from_options(o);
  const auto backend = open_backend(target);
  const std::int64_t V = o.vocab_size > 0 ? o.vocab_size : kVocabSize;
  const std::int64_t M = o.loss_chunk > 0
                             ? o.loss_chunk
                             : std::max<std::int64_t>(kLogitsChunkBytes / (V * dtype_bytes(DType::f32)), 1);
  fmt::print(
      "device  {}\nbf16, one chunk of {} tokens and {} tokens of vocabulary; median\n\n"
      "{:<6}{:>12}{:>9}{:>12}{:>9}{:>11}\n",
      device_name(target), M, V, "model", "products ms", "TFLOP/s", "loss ms", "GB/s", "overhead");
  for (const std::int64_t depth : models) {
    const std::int64_t C = 64 * depth;
    Buffers buffers(*backend);
    const TensorView x = buffers.normal({M, C}, kDType), w = buffers.normal({V, C}, kDType);
    const TensorView logits = buffers.normal({M, V}, DType::f32);
    const TensorView dlogits = dlogits_view(logits, kDType);
    Matmul forward{.a = x, .b = w, .c = logits, .layout = GemmLayout::nt};
    Matmul for_input{.a = dlogits, .b = w, .c = buffers.empty({M, C}, kDType), .layout = GemmLayout::nn};
    Matmul for_weight{.a = dlogits, .b = x, .c = buffers.empty({V, C}, kDType), .layout = GemmLayout::tn};
    for_weight.accumulate = true;
    SoftcapCrossEntropy loss{.logits = logits,
                             .targets = buffers.empty({M}, DType::i32),
                             .nll = buffers.empty({M}, DType::f32),
                             .dlogits = dlogits};
    std::vector<std::int32_t> targets(static_cast<std::size_t>(M));
    for (std::int64_t i = 0; i < M; ++i) {
      targets[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 7919 % V);
    }
    backend->upload(std::as_bytes(std::span(targets)), loss.targets);
    for (Matmul* op : {&forward, &for_input, &for_weight}) buffers.add_scratch(*op, target);

    const double loss_s = median_seconds(*backend, [&] { backend->run(loss); });
    // What the cross-entropy left is no gradient after so many calls; the products want numbers like one.
    backend->run(forward);
    backend->run(loss);
    double products_s = 0;
    for (const Matmul* op : {&for_input, &for_weight, &forward})
      products_s += median_seconds(*backend, [&] { backend->run(*op); });
    const double flops = 6.0 * static_cast<double>(M * V) * static_cast<double>(C);
    const Cost cost = loss.cost();
    fmt::print("{:<6}{:>12.3f}{:>9.2f}{:>12.3f}{:>9.1f}{:>9.1f} %\n", fmt::format("d{}", depth),
               1e3 * products_s, flops / products_s / 1e12, 1e3 * loss_s,
               (cost.read_bytes + cost.written_bytes) / loss_s / kGiga, 100 * loss_s / products_s);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace qt::bench

int main(int argc, char** argv) { return qt::bench::run_benchmark("bench_loss", argc, argv, qt::bench::run); }

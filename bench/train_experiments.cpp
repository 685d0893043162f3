// `qtrain train` with two more update rules, which show what the master copy and the training of the matrices are worth
// (docs/benchmarks.md). Both are adamw8 otherwise.
//   --optim no-master        each update of a packed matrix starts from what its codes hold
//   --optim frozen-matrices  the matrices stay as they are drawn
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "bench/harness.h"
#include "kernels/ops.h"
#include "optim/update_rule.h"
#include "src/cli/verb.h"
#include "src/core/log.h"
#include "src/options/option_table.h"

namespace qt {
namespace {

UpdateRule adamw8_with(std::string_view name, void (*update)(const SlabUpdate& slab)) {
  UpdateRule rule = rules::adamw8;
  rule.name = name;
  rule.update = update;
  return rule;
}

const UpdateRule kNoMaster = adamw8_with("no-master", [](const SlabUpdate& slab) {
  const Weight& weight = slab.param.weight;
  if (weight.is_packed())
    slab.backend.run(Dequantize{.w = weight.packed, .first = slab.first, .dst = slab.master});
  rules::adamw8.update(slab);
});
const UpdateRule kFrozenMatrices = adamw8_with("frozen-matrices", [](const SlabUpdate&) {});

void run(const std::vector<std::string>& words) {
  add_update_rule(kNoMaster);
  add_update_rule(kFrozenMatrices);
  const LoadedOptions loaded = load_options(words);
  if (loaded.options.quiet) set_log_level(LogLevel::warning);
  verbs::train.run({.loaded = loaded, .words = {}, .make_backend = make_backend, .out = std::cout});
}

}  // namespace
}  // namespace qt

int main(int argc, char** argv) { return qt::bench::run_benchmark("train_experiments", argc, argv, qt::run); }

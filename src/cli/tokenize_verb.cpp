// `qtrain tokenize`: text to shards.
#include <algorithm>
#include <filesystem>
#include <ostream>

#include "src/cli/run_data.h"
#include "src/cli/verb.h"
#include "src/core/units.h"
#include "src/plan/planner.h"
#include "src/train/stop.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

void run_tokenize(const VerbCall& call) {
  install_stop_handlers();
  check_options(call.loaded.options);
  const RunData named(call.loaded.options);
  const PreparedData data = named.tokenize();
  const DataReport& r = data.report;
  call.out << fmt::format("{} {}: {} tokenizer of {} tokens\n", r.reused ? "found" : "made",
                          named.cache().string(), name_of(data.tokenizer->kind()),
                          data.tokenizer->vocab_size());
  call.out << fmt::format("  training    {} tokens of {} bytes ({:.2f} bytes per token)\n",
                          format_thousands(r.train.tokens), format_thousands(r.train.text_bytes),
                          static_cast<double>(r.train.text_bytes) /
                              static_cast<double>(std::max<std::int64_t>(r.train.tokens, 1)));
  call.out << fmt::format("  validation  {} tokens of {} bytes\n", format_thousands(r.val.tokens),
                          format_thousands(r.val.text_bytes));
  if (!r.reused)
    call.out << fmt::format("  {:.1f} MB/s, {} in all\n", r.mb_per_s, format_duration(r.seconds));
  call.out << fmt::format("  unigram_bpb={:.4f}\n", r.unigram_bpb);
}

}  // namespace

const Verb verbs::tokenize{
    .name = "tokenize",
    .help = "text to token shards: --data TEXT --cache FOLDER",
    .words = {},
    .run = run_tokenize,
};

}  // namespace qt

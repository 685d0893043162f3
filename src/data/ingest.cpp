#include "src/data/ingest.h"

#include <algorithm>
#include <numeric>

#include "src/core/error.h"
#include "src/data/unigram.h"
#include "src/tokenizer/utf8.h"

namespace qt {
namespace {

constexpr std::int64_t kReportBytes = std::int64_t{256} << 10;

std::string place(const CorpusFile& file, const CorpusPosition& at) {
  return file.format == TextFormat::jsonl ? fmt::format("{}:{}", file.path.string(), at.line + 1)
                                          : file.path.string();
}

}  // namespace

DataMeter::DataMeter(const DataHooks& hooks, const char* phase, std::int64_t total_bytes,
                     std::int64_t done_bytes)
    : hooks_(hooks),
      phase_(phase),
      total_bytes_(total_bytes),
      first_bytes_(done_bytes),
      done_bytes_(done_bytes),
      reported_bytes_(done_bytes) {}

double DataMeter::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

double DataMeter::mb_per_s() const {
  const double s = seconds();
  return s > 0 ? static_cast<double>(done_bytes_ - first_bytes_) * 1e-6 / s : 0;
}

void DataMeter::check_stop() const {
  if (hooks_.stop && hooks_.stop()) {
    throw StopRequested(fmt::format("stopped while {}", phase_),
                        "the same command continues where this one stopped");
  }
}

void DataMeter::update(std::int64_t done_bytes) {
  done_bytes_ = done_bytes;
  check_stop();
  if (!hooks_.progress || (done_bytes - reported_bytes_ < kReportBytes && done_bytes != total_bytes_)) return;
  reported_bytes_ = done_bytes;
  hooks_.progress({phase_, done_bytes, total_bytes_, mb_per_s()});
}

Ingest::Ingest(const DataSpec& spec, const std::vector<CorpusFile>& files, std::int64_t train_files,
               IngestState state, bool resumed, const DataHooks& hooks, FileSystem& fs)
    : spec_(spec),
      files_(files),
      train_files_(train_files),
      state_(std::move(state)),
      measured_(resumed),
      hooks_(hooks),
      fs_(fs) {}

void Ingest::measure(std::int64_t train_files) {
  DataMeter meter(hooks_, "measuring", 0);
  const auto poll = [&](std::int64_t bytes) { meter.update(bytes); };
  const auto bytes = scan_corpus(files_, poll);
  const auto total = std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0});
  if (train_files < static_cast<std::int64_t>(files_.size())) {
    const auto train = std::accumulate(bytes.begin(), bytes.begin() + train_files, std::int64_t{0});
    state_.cut = {{train_files, 0, 0}, train, total - train};
    QT_CHECK(state_.cut.val_bytes > 0, DataError, "the validation files hold no text");
  } else {
    if (total > 0)
      state_.cut = cut_corpus(files_, bytes, spec_.val_fraction, [&](std::int64_t) { meter.check_stop(); });
  }
  if (state_.cut.train_bytes == 0) {
    throw DataError(fmt::format("{}: no text to train on", files_.front().path.string()),
                    "name files that hold text");
  }
  state_.splits[kVal].part = state_.cut.at;
  record();
}

Tokenizer Ingest::learn() {
  TokenizerTrainer trainer(spec_.tokenizer);
  const auto window = [&](std::string_view text, bool at_end) { return trainer.next_window(text, at_end); };
  // A character that only the validation text has would be an error there, so `char` sees all of the text, as
  // in nanoGPT.
  const bool whole = spec_.tokenizer.kind == TokenizerKind::chars;
  const CorpusPosition end =
      whole ? CorpusPosition{static_cast<std::int64_t>(files_.size()), 0, 0} : state_.cut.at;
  const std::int64_t total = state_.cut.train_bytes + (whole ? state_.cut.val_bytes : 0);
  DataMeter meter(hooks_, "learning the tokenizer", total);
  if (spec_.tokenizer.kind != TokenizerKind::bytes) {
    CorpusReader reader(files_, {}, end, window);
    CorpusPart part;
    std::int64_t done = 0;
    bool more = true;
    while (more && reader.next(part)) {
      const CorpusFile& file = files_[static_cast<std::size_t>(part.begin.file)];
      std::string_view text = part.text;
      if (file.format == TextFormat::jsonl && !whole)
        text = text.substr(0, utf8_prefix(text, kLearnDocumentChars));
      done += static_cast<std::int64_t>(part.text.size());
      try {
        more = trainer.add(text, file.format == TextFormat::text ? part.begin.offset : 0);
      } catch (const DataError& e) {
        throw DataError(fmt::format("{}: {}", place(file, part.begin), e.what()), e.hint());
      }
      meter.update(done);
    }
  }
  return trainer.finish([&] { meter.check_stop(); });
}

Tokenizer Ingest::obtain_tokenizer() {
  const auto path = tokenizer_path(spec_.out_dir);
  if (!state_.vocab_hash.empty()) {
    Tokenizer known = Tokenizer::load(path);
    QT_CHECK(known.hash() == state_.vocab_hash, DataError,
             "{}: changed since this run began: its hash is {}, not {}", path.string(), known.hash(),
             state_.vocab_hash);
    return known;
  }
  Tokenizer tokenizer = spec_.tokenizer_file.empty() ? learn() : Tokenizer::load(spec_.tokenizer_file);
  QT_CHECK(tokenizer.has_text(), ConfigError, "{}: a vocabulary of numbers alone cannot tokenize text",
           spec_.tokenizer_file.string());
  QT_CHECK(tokenizer.vocab_size() <= kShardMaxVocab, ConfigError,
           "a vocabulary of {} does not fit the 16-bit tokens of a shard (at most {})",
           tokenizer.vocab_size(), kShardMaxVocab);
  tokenizer.save(fs_, path);
  state_.vocab_hash = tokenizer.hash();
  record();
  return tokenizer;
}

// Takes the finished shards of an earlier call into the counts, verified; returns their bytes of text.
std::int64_t Ingest::recount(const Tokenizer& tokenizer, Split split) {
  for (std::int64_t shard = 0; shard < state_.splits[split].shards; ++shard) {
    try {
      ShardReader(shard_path(spec_.out_dir, split, shard), tokenizer.vocab_size(), tokenizer.hash())
          .count(counts_[split]);
    } catch (const DataError& e) {
      throw DataError(fmt::format("cannot continue: {}", e.what()),
                      "delete the folder and run the same command again");
    }
  }
  std::int64_t bytes = 0;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    bytes += counts_[split][static_cast<std::size_t>(id)] * tokenizer.token_bytes(id);
  }
  return bytes;
}

void Ingest::tokenize(const Tokenizer& tokenizer, Split split, DataMeter& meter) {
  SplitState& state = state_.splits[split];
  if (state.done) return;
  const auto hash = tokenizer.hash();
  const auto fresh = [&] {
    return ShardWriter(shard_path(spec_.out_dir, split, state.shards), tokenizer.vocab_size(), hash);
  };
  ShardWriter writer = fresh();
  std::int64_t shard_bytes = 0;
  const auto finish_shard = [&](CorpusPosition part, std::int64_t skip_tokens, bool done) {
    if (writer.tokens() > 0) {
      writer.finish(fs_, shard_bytes);
      ++state.shards;
      writer = fresh();
      shard_bytes = 0;
    }
    state.part = part;
    state.skip_tokens = skip_tokens;
    state.done = done;
    record();
  };

  const auto window = [&](std::string_view text, bool at_end) { return tokenizer.next_window(text, at_end); };
  const CorpusPosition end_of_files = {static_cast<std::int64_t>(files_.size()), 0, 0};
  CorpusReader reader(files_, split == kTrain ? CorpusPosition{} : state_.cut.at,
                      split == kTrain ? state_.cut.at : end_of_files, window, state.part);
  CorpusPart part;
  std::vector<std::int32_t> ids;
  std::int64_t skip = state.skip_tokens;
  while (reader.next(part)) {
    const CorpusFile& file = files_[static_cast<std::size_t>(part.begin.file)];
    ids.clear();
    if (part.opens_document && tokenizer.bos() >= 0) ids.push_back(tokenizer.bos());
    try {
      tokenizer.encode(part.text, ids, file.format == TextFormat::text ? part.begin.offset : 0);
    } catch (const DataError& e) {
      throw DataError(fmt::format("{}: {}", place(file, part.begin), e.what()), e.hint());
    }
    QT_CHECK(skip <= static_cast<std::int64_t>(ids.size()), DataError, "{}: changed since this run began",
             place(file, part.begin));
    for (auto used = static_cast<std::size_t>(std::exchange(skip, 0)); used < ids.size();) {
      const auto room = static_cast<std::size_t>(spec_.shard_tokens - writer.tokens());
      const auto now = std::span<const std::int32_t>(ids).subspan(used, std::min(room, ids.size() - used));
      writer.append(now);
      for (const std::int32_t id : now) {
        ++counts_[split][static_cast<std::size_t>(id)];
        shard_bytes += tokenizer.token_bytes(id);
      }
      used += now.size();
      if (writer.tokens() == spec_.shard_tokens) {
        text_bytes_[split] += shard_bytes;
        finish_shard(part.begin, static_cast<std::int64_t>(used), false);
      }
    }
    meter.update(text_bytes_[kTrain] + text_bytes_[kVal] + shard_bytes);
  }
  text_bytes_[split] += shard_bytes;
  finish_shard(split == kTrain ? state_.cut.at : end_of_files, 0, true);
}

DataReport Ingest::run() {
  if (!measured_) measure(train_files_);
  const Tokenizer tokenizer = obtain_tokenizer();
  for (const Split split : {kTrain, kVal}) {
    counts_[split].assign(static_cast<std::size_t>(tokenizer.vocab_size()), 0);
    text_bytes_[split] = recount(tokenizer, split);
  }
  DataMeter meter(hooks_, "tokenizing", state_.cut.train_bytes + state_.cut.val_bytes,
                  text_bytes_[kTrain] + text_bytes_[kVal]);
  for (const Split split : {kTrain, kVal}) tokenize(tokenizer, split, meter);

  DataReport report;
  report.mb_per_s = meter.mb_per_s();
  const std::int64_t expected[] = {state_.cut.train_bytes, state_.cut.val_bytes};
  for (const Split split : {kTrain, kVal}) {
    if (text_bytes_[split] != expected[split]) {
      throw DataError(fmt::format("the {} tokens stand for {} bytes of text, the inputs held {}",
                                  kSplitNames[split], text_bytes_[split], expected[split]),
                      "an input changed while it was read: delete the folder and run the same command again");
    }
    auto& to = split == kTrain ? report.train : report.val;
    to = {std::accumulate(counts_[split].begin(), counts_[split].end(), std::int64_t{0}), text_bytes_[split]};
  }
  report.unigram_bpb = unigram_bpb(counts_[kTrain], counts_[kVal], tokenizer.token_bytes_table());
  write_dataset_manifest(fs_, spec_.out_dir,
                         {state_.key, tokenizer.hash(), report.train, report.val,
                          state_.splits[kTrain].shards, state_.splits[kVal].shards, report.unigram_bpb});
  return report;
}

}  // namespace qt

// Not a test: writes what a model says, for tools/check_export.py to compare with transformers.
//
//   logits_dump OUT.safetensors IDS NEW TEXT [--option value ...]
//
// IDS: token ids with commas between them. NEW: how many tokens to continue them with, the likeliest each
// time. TEXT: a file to encode, or "-". The options name the model as those of `qtrain sample` do. OUT holds
// f32 `logits` [ids, V], i32 `greedy` [NEW], i32 `text` [tokens of TEXT].
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/built_backends.h"
#include "src/cli/trained_model.h"
#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/safetensors_writer.h"

namespace {

using namespace qt;

std::vector<std::int32_t> numbers(const std::string& text) {
  std::vector<std::int32_t> ids;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) ids.push_back(std::stoi(word));
  return ids;
}

void dump(const std::vector<std::string>& args) {
  const std::vector<std::int32_t> ids = numbers(args.at(1));
  const std::int64_t wanted = std::stoll(args.at(2));
  const LoadedOptions loaded = load_options(std::span(args).subspan(4));
  LoadedModel model = load_model(loaded, make_backend, 1, true);
  const ModelConfig& c = model.engine->options().model;
  QT_CHECK(static_cast<std::int64_t>(ids.size()) <= c.seq_len, ConfigError, "{} ids are more than {} tokens",
           ids.size(), c.seq_len);
  std::vector<std::int32_t> row = ids;
  row.resize(static_cast<std::size_t>(c.seq_len), 0);
  std::vector<float> logits(static_cast<std::size_t>(c.seq_len * c.vocab_size));
  model.engine->logits(row, logits);
  logits.resize(ids.size() * static_cast<std::size_t>(c.vocab_size));
  std::vector<std::int32_t> greedy;
  if (wanted > 0) greedy = model.engine->sample(ids, {.new_tokens = wanted, .temperature = 0});
  std::vector<std::int32_t> text;
  if (args.at(3) != "-") model.tokenizer.encode(read_file(args.at(3), std::uint64_t{1} << 30), text);

  const auto count = [](const auto& v) { return static_cast<std::int64_t>(v.size()); };
  OutputFile out(posix_fs(), args.at(0), OutputFile::Existing::replace);
  SafetensorsWriter writer(out, {{"logits", StoredType::f32, {count(ids), c.vocab_size}},
                                 {"greedy", StoredType::i32, {count(greedy)}},
                                 {"text", StoredType::i32, {count(text)}}});
  writer.write("logits", std::as_bytes(std::span(logits)));
  writer.write("greedy", std::as_bytes(std::span(greedy)));
  writer.write("text", std::as_bytes(std::span(text)));
  writer.finish();
  out.finish();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 5) throw ConfigError("usage: logits_dump OUT IDS NEW TEXT [--option value ...]");
    add_built_backends();
    dump({argv + 1, argv + argc});
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "logits_dump: " << e.what() << "\n";
    return 1;
  }
}

// tokenizer.json: what is written is read back with the same ids, what `tokenizers` wrote is read, and what
// is not ours is refused by name.
#include <functional>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/json.h"
#include "src/tokenizer/hf_tokenizer.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

const std::string kGolden = std::string(QTRAIN_SOURCE_DIR) + "/tests/golden/";

Tokenizer trained(const std::string& pattern) {
  TokenizerSpec spec;
  spec.vocab_size = 300;
  spec.pattern = pattern;
  TokenizerTrainer trainer(spec);
  std::string text;
  for (int i = 0; i < 50; ++i) text += "the quick brown foxes' 1234 jumped,\n\nwe've seen naïve ones \t ";
  trainer.add(text);
  return trainer.finish();
}

std::vector<Tokenizer> every_kind() {
  std::vector<Tokenizer> all;
  all.push_back(trained("nanochat"));
  all.push_back(trained("gpt2"));
  all.push_back(Tokenizer::load(kGolden + "gpt2_small"));
  all.push_back(Tokenizer::make_bytes());
  all.push_back(Tokenizer::make_chars({U'\n', U' ', U'a', U'é', U'世'}));
  return all;
}

TEST(HfTokenizer, GivesEveryVocabularyBack) {
  for (const Tokenizer& tokenizer : every_kind()) {
    SCOPED_TRACE(std::string(name_of(tokenizer.kind())) + " " + tokenizer.pattern());
    const std::string file = hf_tokenizer_json(tokenizer);
    const Tokenizer back = parse_hf_tokenizer(file, "tokenizer.json");
    EXPECT_EQ(back.hash(), tokenizer.hash());
    EXPECT_EQ(hf_tokenizer_json(back), file);
  }
}

TEST(HfTokenizer, RecoversTheMergesThatMadeEachToken) {
  const Tokenizer tokenizer = trained("nanochat");
  const Json file = Json::parse(hf_tokenizer_json(tokenizer));
  const Json& merges = file["model"]["merges"];
  ASSERT_EQ(static_cast<std::int32_t>(merges.size()), tokenizer.bpe()->size() - 256);
  for (std::size_t i = 0; i < merges.size(); ++i) {
    std::string joined = merges[i].get<std::string>();
    joined.erase(joined.find(' '), 1);
    EXPECT_EQ(file["model"]["vocab"][joined].get<std::size_t>(), 256 + i) << joined;
  }
}

TEST(HfTokenizer, ReadsWhatTokenizersWrote) {
  const Tokenizer ours = Tokenizer::load(kGolden + "gpt2_small");
  const Tokenizer theirs = Tokenizer::load(kGolden + "hf_gpt2/tokenizer.json");
  EXPECT_EQ(theirs.hash(), ours.hash());
  EXPECT_EQ(Tokenizer::load(kGolden + "hf_gpt2").hash(), ours.hash()) << "the folder names it as well";
}

TEST(HfTokenizer, NamesTheTokensThatOpenAndEnd) {
  const HfSpecialIds nanochat = hf_special_ids(Tokenizer::make_bytes());
  EXPECT_EQ(nanochat.bos, 256);
  EXPECT_EQ(nanochat.eos, 260);  // <|assistant_end|>
  const HfSpecialIds gpt2 = hf_special_ids(Tokenizer::load(kGolden + "gpt2_small"));
  EXPECT_EQ(gpt2.bos, 1000);
  EXPECT_EQ(gpt2.eos, 1000);
  const Tokenizer chars = Tokenizer::make_chars({U'a', U'b'});
  EXPECT_EQ(hf_special_ids(chars).bos, -1);
  EXPECT_EQ(hf_tokenizer_config_json(chars, 8).find("bos_token"), std::string::npos);
  const Json config = Json::parse(hf_tokenizer_config_json(Tokenizer::make_bytes(), 64));
  EXPECT_EQ(config["bos_token"], "<|bos|>");
  EXPECT_EQ(config["model_max_length"], 64);
}

TEST(HfTokenizer, RefusesNumbers) { EXPECT_THROW(hf_tokenizer_json(Tokenizer::make_ids(10)), ConfigError); }

TEST(HfTokenizer, RefusesWhatItCannotRead) {
  const Tokenizer tokenizer = trained("nanochat");
  const std::string good = hf_tokenizer_json(tokenizer);
  const std::pair<std::function<void(Json&)>, const char*> cases[] = {
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, "not BPE"},
      {[](Json& j) { j["model"]["type"] = 3; }, "type"},
      {[](Json& j) { j.erase("model"); }, "model"},
      {[](Json& j) { j["model"].erase("merges"); }, "merges"},
      {[](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer"},
      {[](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       "Metaspace"},
      {[](Json& j) { j["pre_tokenizer"] = nullptr; }, "pre_tokenizer"},
      {[](Json& j) { j["pre_tokenizer"]["type"] = 3; }, "pre_tokenizer"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"] = 3; }, "pretokenizers"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = 3; }, "Sequence"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = 3; }, "pattern"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\d+"; }, "\\d+"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }, "Split"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; }, "Sequence"},
      {[](Json& j) { j["model"]["merges"].erase(3); }, "token"},
      {[](Json& j) { std::swap(j["model"]["merges"][0], j["model"]["merges"][1]); }, "merge 1"},
      {[](Json& j) { j["model"]["merges"][2] = "a b c"; }, "merge 3"},
      {[](Json& j) { j["model"]["merges"][2] = 7; }, "merge 3"},
      {[](Json& j) { j["model"]["vocab"].erase("!"); }, "is next"},
      {[](Json& j) { j["model"]["vocab"]["!"] = -1; }, "the id -1"},
      {[](Json& j) { j["model"]["vocab"]["!"] = 1.5; }, "the id 1.5"},
      {[](Json& j) { j["model"]["vocab"]["!"] = std::uint64_t{1} << 63; }, "the id 9223372036854775808"},
      {[](Json& j) { j["added_tokens"][0]["id"] = 5; }, "two ids"},
      {[](Json& j) { j["added_tokens"][0]["content"] = "<|other|>"; }, "is next"},
      {[](Json& j) { j["added_tokens"] = 1; }, "added_tokens"},
  };
  for (const auto& [change, word] : cases) {
    Json json = Json::parse(good);
    change(json);
    SCOPED_TRACE(word);
    const std::string message = message_of<DataError>([&] { parse_hf_tokenizer(json.dump(), "x.json"); });
    EXPECT_NE(message.find("x.json"), std::string::npos) << message;
    EXPECT_NE(message.find(word), std::string::npos) << message;
  }
  for (std::size_t length = 0; length < good.size(); length += 97)
    EXPECT_THROW(parse_hf_tokenizer(std::string_view(good).substr(0, length), "x.json"), DataError) << length;
}

}  // namespace
}  // namespace qt::test

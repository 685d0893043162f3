// Any bytes as a tokenizer file, and any bytes as text for a tokenizer that reads. What parses must survive a
// second round, and what is encoded must come back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "src/core/error.h"
#include "src/tokenizer/tokenizer.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

// A few merges with overlaps ("a" + "a", "aa" + "a", " " + "the"), learnt once.
const qt::Tokenizer& trained() {
  static const qt::Tokenizer tokenizer = [] {
    qt::TokenizerTrainer trainer({.kind = qt::TokenizerKind::bpe, .vocab_size = 280});
    trainer.add("the theme aaaaaaaa aaaa bathe the 2024 1999 end.\n\nthe end\n");
    return trainer.finish();
  }();
  return tokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  const std::string_view input(reinterpret_cast<const char*>(data), bytes);
  require(trained().decode(trained().encode(input)) == input);
  try {
    const qt::Tokenizer tokenizer = qt::Tokenizer::parse(input, "input");
    const std::string again = tokenizer.serialise();
    require(qt::Tokenizer::parse(again, "again").hash() == tokenizer.hash());
    if (tokenizer.kind() != qt::TokenizerKind::chars)
      require(tokenizer.decode(tokenizer.encode(input)) == input);
  } catch (const qt::DataError&) {
    // The only way to refuse.
  }
  return 0;
}

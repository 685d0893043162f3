// A tokenizer.json is read, or refused as DataError; what is read can be written and read again.
#include <cstdint>
#include <cstdlib>

#include "src/core/error.h"
#include "src/tokenizer/hf_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace qt;
  try {
    const Tokenizer tokenizer =
        parse_hf_tokenizer(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    if (parse_hf_tokenizer(hf_tokenizer_json(tokenizer), "again").hash() != tokenizer.hash()) std::abort();
  } catch (const DataError&) {
  }
  return 0;
}

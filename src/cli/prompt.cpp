#include "src/cli/prompt.h"

#include <cstdint>
#include <vector>

#include "src/core/error.h"

namespace qt {

std::string usable_prompt(const LoadedOptions& loaded, const Tokenizer& tokenizer) {
  const std::string& prompt = loaded.options.prompt;
  try {
    std::vector<std::int32_t> ids;
    tokenizer.encode(prompt, ids);
    return prompt;
  } catch (const DataError& e) {
    if (!loaded.given("prompt")) return {};
    throw ConfigError(fmt::format("--prompt: {}", e.what()), tokenizer.kind() == TokenizerKind::ids
                                                                 ? "give token numbers, as \"1 2 3\""
                                                                 : "use letters that the training text has");
  }
}

}  // namespace qt

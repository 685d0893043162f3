// Words of the command line that belong to one verb, as --json to plan: no options of a run, so neither files
// nor the environment set them and no checkpoint stores them.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

struct VerbWord {
  const char* name;   // "card"
  const char* value;  // what stands for its value in --help: "NAME"; nullptr: a flag
  const char* help;
  bool stands_alone = false;  // a value without a name: `qtrain status runs/d4`; at most one of a verb
};

// The words of one verb.
struct VerbWords {
  const char* verb;
  std::span<const VerbWord> words;
};

class VerbValues {
 public:
  void set(std::string name, std::string value) { values_[std::move(name)] = std::move(value); }
  bool has(std::string_view name) const { return values_.contains(name); }
  // nullptr where it was not said.
  const std::string* find(std::string_view name) const {
    const auto it = values_.find(name);
    return it == values_.end() ? nullptr : &it->second;
  }

 private:
  std::map<std::string, std::string, std::less<>> values_;  // of flags: empty
};

// Takes the words of `verb`, one of `all`, and their values (--card 4070, --card=4070) out of args. ConfigError for one that is
// said twice, lacks its value or, as a flag, has one; and for an unknown word that is one of the verb's but
// for a letter or two. A word without a name is taken where the verb has one, unless it is an option's value.
VerbValues take_verb_words(std::span<const VerbWords> all, std::string_view verb,
                           std::vector<std::string>& args);

}  // namespace qt

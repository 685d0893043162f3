#include "optim/update_rule.h"

#include <string>
#include <vector>

#include "src/core/error.h"

namespace qt {

namespace {

std::vector<const UpdateRule*>& known_rules() {
#define QT_RULE_ROW(name) &rules::name,
  static std::vector<const UpdateRule*> rules = {QT_FOR_EACH_UPDATE_RULE(QT_RULE_ROW)};
#undef QT_RULE_ROW
  return rules;
}

}  // namespace

std::span<const UpdateRule* const> all_update_rules() { return known_rules(); }

const UpdateRule& update_rule_by_name(std::string_view name) {
  std::string names;
  for (const UpdateRule* rule : known_rules()) {
    if (rule->name == name) return *rule;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", rule->name);
  }
  throw ConfigError(fmt::format("unknown optimizer '{}'", name), "use --optim with one of: " + names);
}

void add_update_rule(const UpdateRule& rule) { known_rules().push_back(&rule); }

}  // namespace qt

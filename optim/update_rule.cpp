#include "optim/update_rule.h"

#include <string>

#include "src/core/error.h"

namespace qt {

namespace {

constexpr const UpdateRule* kRules[] = {
#define QT_RULE_ROW(name) &rules::name,
    QT_FOR_EACH_UPDATE_RULE(QT_RULE_ROW)
#undef QT_RULE_ROW
};

}  // namespace

const UpdateRule& update_rule_by_name(std::string_view name) {
  std::string names;
  for (const UpdateRule* rule : kRules) {
    if (rule->name == name) return *rule;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", rule->name);
  }
  throw ConfigError(fmt::format("unknown optimizer '{}'", name), "use --optim with one of: " + names);
}

}  // namespace qt

// The update rules that --optim names, one row each. A row `name` stands for the file optim/<name>.cpp, which defines
// rules::name (optim/update_rule.h).
#pragma once

// In the order of messages.
#define QT_FOR_EACH_UPDATE_RULE(X) X(adamw8) X(adamw)

namespace qt {

#define QT_RULE_WORD(name) " | " #name
// "adamw8 | adamw": the help text of --optim.
inline constexpr const char* kUpdateRuleNames = &(QT_FOR_EACH_UPDATE_RULE(QT_RULE_WORD))[3];
#undef QT_RULE_WORD

}  // namespace qt

// The update rules that --optim names, one row each. A row `name` stands for the file optim/<name>.cpp, which defines
// rules::name (optim/update_rule.h).
#pragma once

#include <span>

// In the order of messages.
#define QT_FOR_EACH_UPDATE_RULE(X) X(adamw8) X(adamw)

namespace qt {

struct UpdateRule;

namespace rules {
#define QT_DECLARE_RULE(name) extern const UpdateRule name;
QT_FOR_EACH_UPDATE_RULE(QT_DECLARE_RULE)
#undef QT_DECLARE_RULE
}  // namespace rules

// Those of the table, and after them those that add_update_rule() added.
std::span<const UpdateRule* const> all_update_rules();

}  // namespace qt

// "Did you mean": the known name that is nearest to a mistyped one. One rule for options, formats and models.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace qt {

// Levenshtein distance in bytes; names are a few characters long.
std::size_t edit_distance(std::string_view a, std::string_view b);

// The known name with the smallest distance, the first of equals; empty when `known` is.
std::string_view nearest_name(std::string_view name, std::span<const std::string_view> known);

// The same, or empty where more than half of the nearest name's letters differ: a suggestion would be a
// guess.
std::string_view similar_name(std::string_view name, std::span<const std::string_view> known);

}  // namespace qt

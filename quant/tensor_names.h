// The names of tensors beside a param's own, in checkpoints and in messages: files keep them, so they never change.
#pragma once

#include <string>
#include <string_view>

namespace qt {

inline std::string master_of(std::string_view param) { return "master." + std::string(param); }
inline bool is_master(std::string_view tensor) { return tensor.starts_with("master."); }

// moment: the name of a StatePiece (optim/update_rule.h), "m" for example.
inline std::string moment_of(std::string_view moment, std::string_view param) {
  return std::string(moment) + "." + std::string(param);
}

// Of a packed weight, or of a moment in 8 bits.
inline std::string scales_of(std::string_view tensor) { return std::string(tensor) + ".absmax"; }

}  // namespace qt

// The version of this program, as printed and as written into what it leaves behind.
#pragma once

namespace qt {

inline constexpr const char* kVersion = "0.1.0";  // the project's, in CMakeLists.txt

}  // namespace qt

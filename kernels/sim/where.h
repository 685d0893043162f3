// Where a call stands: std::source_location, which clang 14 does not have with the standard library it is
// used with here; there the compiler's own words stand in.
#pragma once

#include <source_location>

namespace qt::sim {

#ifdef __cpp_lib_source_location
using Where = std::source_location;
#else
class Where {
 public:
  static constexpr Where current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    Where where;
    where.file_ = file;
    where.line_ = line;
    return where;
  }
  constexpr const char* file_name() const { return file_; }
  constexpr unsigned line() const { return line_; }
  constexpr unsigned column() const { return 0; }

 private:
  const char* file_ = "";
  unsigned line_ = 0;
};
#endif

}  // namespace qt::sim

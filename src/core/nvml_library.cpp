#include "src/core/nvml_library.h"

#include <dlfcn.h>

namespace qt::nvml {

Library::Library(const char* name) : handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ != nullptr) start_status_ = Call<>(*this, {"nvmlInit_v2"}).status();
}

Library::~Library() {
  if (start_status_ == kSuccess) Call<>(*this, {"nvmlShutdown"})();
  if (handle_ != nullptr) dlclose(handle_);
}

void* Library::symbol(const char* name) const { return handle_ == nullptr ? nullptr : dlsym(handle_, name); }

}  // namespace qt::nvml

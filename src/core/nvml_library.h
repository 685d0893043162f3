// The driver's management library (NVML), loaded by name: it comes with the driver, and a machine without one
// runs this program too. src/meter/nvml.cpp and kernels/cuda/nvml.cu ask it.
#pragma once

#include <initializer_list>

namespace qt::nvml {

inline constexpr const char* kLibrary = "libnvidia-ml.so.1";

// The library's types, as far as they cross the border: codes and kinds are ints, a card is a pointer.
using Status = int;
inline constexpr Status kSuccess = 0, kInsufficientSize = 7, kNoFunction = -1;
using Handle = void*;

struct Memory {
  unsigned long long total = 0, free = 0, used = 0;
};

// The library as long as it is in use: loaded and started, later shut down and closed. Never throws.
class Library {
 public:
  explicit Library(const char* name = kLibrary);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool loaded() const { return handle_ != nullptr; }
  Status start_status() const { return start_status_; }  // kSuccess: it may be asked
  void* symbol(const char* name) const;                  // nullptr where the library has none of this name

 private:
  void* handle_;
  Status start_status_ = kNoFunction;
};

// A function of the library under the first of its names that the library has; without one every call fails.
template <class... Args>
class Call {
 public:
  Call(const Library& library, std::initializer_list<const char*> names) {
    for (const char* name : names) {
      if (function_ == nullptr) function_ = reinterpret_cast<Status (*)(Args...)>(library.symbol(name));
    }
  }
  Status status(Args... args) const { return function_ == nullptr ? kNoFunction : function_(args...); }
  bool operator()(Args... args) const { return status(args...) == kSuccess; }

 private:
  Status (*function_)(Args...) = nullptr;
};

// The card at a PCI address as cudaDeviceGetPCIBusId gives it.
struct CardAt : Call<const char*, Handle*> {
  explicit CardAt(const Library& library) : Call(library, {"nvmlDeviceGetHandleByPciBusId_v2"}) {}
};
struct MemoryOf : Call<Handle, Memory*> {
  explicit MemoryOf(const Library& library) : Call(library, {"nvmlDeviceGetMemoryInfo"}) {}
};

}  // namespace qt::nvml

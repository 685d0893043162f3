// Ranges for profilers (`nsys profile --trace cuda,nvtx`). NVTX is headers only and does nothing while no
// profiler listens; where a toolkit lacks it, and in the simulator, there are no ranges.
#pragma once

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define QT_NVTX(call) call
#else
#define QT_NVTX(call)
#endif

namespace qt::cuda {

inline void begin_range([[maybe_unused]] const char* name) { QT_NVTX(nvtxRangePushA(name)); }
inline void end_range() { QT_NVTX(nvtxRangePop()); }

}  // namespace qt::cuda

// Ops that have no kernel yet.
#include "kernels/cuda/context.h"
#include "src/core/error.h"

namespace qt::cuda {

#define QT_PENDING(Op) \
  void run(const Op&, const Context&) { throw DeviceError(fmt::format("{} has no kernel yet", Op::kName)); }
QT_PENDING(AttentionFwd)
QT_PENDING(AttentionBwd)
#undef QT_PENDING

}  // namespace qt::cuda

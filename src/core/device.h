// Marks functions that kernels call too. Nothing but the word: no header of a device is needed for it.
#pragma once

#ifdef __CUDACC__
#define QT_HOST_DEVICE __host__ __device__
#else
#define QT_HOST_DEVICE
#endif

// Copies of few bytes between pinned host memory and the device. A kernel makes them: on a stream
// of kernels, the copy engine costs the GPU several microseconds, because it begins when the kernel
// before has ended, and the next kernel begins when it has ended.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/runtime/fault.h"

namespace llamaforge::cuda {

constexpr size_t kMostSmall = size_t{16} << 10;  // bytes; larger copies are faster on the engine

// Copies at most kMostSmall bytes. Host memory must be pinned.
void copy_small(void* to, const void* from, size_t bytes, cudaStream_t stream);

// Copies the device's record to pinned host memory and clears it.
void take_record(FaultRecord* to, FaultRecord* record, cudaStream_t stream);

}  // namespace llamaforge::cuda

// Translates CUDA's return codes to our errors.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/error.h"

namespace llamaforge::cuda {

// After a sticky error the context is gone: every later call in this process fails in the same way.
bool is_sticky(cudaError_t error);

// Returns the Error for a failed call: ERR_DEVICE_LOST if sticky, ERR_OUT_OF_MEMORY, else
// ERR_NATIVE. Clears CUDA's own record of the error.
Error error_of(cudaError_t error, const char* call);

inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw error_of(error, call);
}

}  // namespace llamaforge::cuda

#define LF_CUDA_CHECK(call) ::llamaforge::cuda::check((call), #call)

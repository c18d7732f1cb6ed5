// Descriptors of the bulk tensor copy engine for (batch, time, columns) tensors of bf16.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {

// Describes boxes of `rows` tokens by 64 columns, in the 128-byte swizzle. The driver's function is
// looked up at run time, once, because the plugin does not link libcuda.
inline CUtensorMap tensor_map(const void* data, int batch, int time, int columns, int rows) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               12000, cudaEnableDefault, &found);
#else
    // Before 12.5 the runtime asks for the function as its own version knows it, which is that
    // of 12.0.
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      throw Error("ERR_CUDA",
                  "the driver has no cuTensorMapEncodeTiled (CUDA 12.0 or newer is needed)");
    }
    return reinterpret_cast<Encode>(entry);
  }();
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(time),
                               static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error("ERR_CUDA", format("cuTensorMapEncodeTiled failed with error {} for ({},{},{})",
                                   static_cast<int>(result), batch, time, columns));
  }
  return map;
}

}  // namespace llamaforge::cuda

// The ring of a chain in shared memory, and the stages as the warps that compute find them there.
#pragma once

#include "cuda/gemm/chain_link.cuh"

namespace llamaforge::cuda::chain {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A block's outputs of a product.
__device__ __forceinline__ int first_output(int outputs, unsigned block) {
  return static_cast<int>(static_cast<unsigned>(outputs) * block / gridDim.x);
}

struct Ring {
  bfloat16* memory;
  int rows;
  hopper::Barrier *full, *empty;  // (kSlots)
};

// Places of stages in the ring, one behind the other. A stage that would cross the end begins at
// the start.
struct Cursor {
  int at = 0;
  // Rows that are left out before a stage of `rows` rows.
  __device__ __forceinline__ int left_out(const Ring& ring, int rows) const {
    return at + rows > ring.rows ? ring.rows - at : 0;
  }
  // The row where a stage of `rows` rows begins.
  __device__ __forceinline__ int take(const Ring& ring, int rows) {
    if (at + rows > ring.rows) at = 0;
    const int place = at;
    at += rows;
    return place;
  }
};

#endif

}  // namespace llamaforge::cuda::chain

#include "cuda/runtime/small_copy.h"

#include <cstdint>

#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {

namespace {

constexpr int kBlock = 512;

// Loads of host memory wait for the bus, so all of a thread's are on their way at once.
template <class Word>
__device__ void copy_words(Word* __restrict__ to, const Word* __restrict__ from, size_t count) {
#pragma unroll 4
  for (size_t i = threadIdx.x; i < count; i += kBlock) to[i] = from[i];
}

__global__ void __launch_bounds__(kBlock)
    copy_kernel(void* to, const void* from, size_t bytes, size_t word) {
  if (word == 16) {
    copy_words(static_cast<uint4*>(to), static_cast<const uint4*>(from), bytes / 16);
  } else if (word == 4) {
    copy_words(static_cast<uint32_t*>(to), static_cast<const uint32_t*>(from), bytes / 4);
  } else {
    copy_words(static_cast<char*>(to), static_cast<const char*>(from), bytes);
  }
}

__global__ void take_kernel(FaultRecord* to, FaultRecord* record) {
  *to = *record;
  *record = {};
}

}  // namespace

void copy_small(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  const auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  const size_t word = places % 16 == 0 ? 16 : places % 4 == 0 ? 4 : 1;
  copy_kernel<<<1, kBlock, 0, stream>>>(to, from, bytes, word);
  LF_CUDA_CHECK(cudaGetLastError());
}

void take_record(FaultRecord* to, FaultRecord* record, cudaStream_t stream) {
  take_kernel<<<1, 1, 0, stream>>>(to, record);
  LF_CUDA_CHECK(cudaGetLastError());
}

}  // namespace llamaforge::cuda

// Shared code of the CUDA kernels: argument checks, grids, bf16 and 16-byte access, reductions in a
// fixed order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "cuda/runtime/cuda_stream.h"
#include "ops/checks/common.h"
#include "runtime/tensor.h"

namespace llamaforge::cuda {

// ---- grids (host) -------------------------------------------------------------------------------

constexpr int kThreads = 256;  // threads per block of an element-wise kernel

// Returns the number of blocks for a grid-stride loop over `count` items, `per_block` at a time. If
// the items more than fill the GPU, each block runs the loop twice: with few long-lived blocks each
// thread has only one load in flight, and a kernel with 1 read and 1 write ran at 73% of a copy's
// rate on an H100.
inline unsigned blocks_for(const CudaStream& cuda, int64_t count, int64_t per_block = kThreads) {
  const int64_t once = (count + per_block - 1) / per_block;
  const int64_t most = std::max(int64_t{cuda.multiprocessors()} * 16, (once + 1) / 2);
  return static_cast<unsigned>(std::clamp<int64_t>(once, 1, std::min<int64_t>(most, INT32_MAX)));
}

// Reports a failed launch; called after each launch.
inline void check_launch() { LF_CUDA_CHECK(cudaGetLastError()); }

// Whether all of these can be read in 16-byte vectors (views may start at any element).
inline bool aligned16(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  return true;
}

#ifdef __CUDACC__

// ---- kernels that start early -------------------------------------------------------------------

// On Hopper and later, a kernel may start while the previous kernel in the stream still runs.
// launch_early() launches such a kernel, and let_next_start() in a kernel lets its successor start.
// A kernel that is launched early must call wait_for_previous() before it touches anything that
// earlier kernels write, and before it writes at all. On other GPUs these functions do nothing.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
void launch_early(const CudaStream& cuda, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                  size_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = cuda.compute();
  config.attrs = &early;
  config.numAttrs = cuda.compute_capability() >= 90 ? 1 : 0;
  LF_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// ---- elements (device) --------------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bfloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

// Bounds x from below (above); NaN stays.
__device__ __forceinline__ float at_least(float x, float low) { return x < low ? low : x; }
__device__ __forceinline__ float at_most(float x, float high) { return x > high ? high : x; }

// Packs two bf16 into one word, the first in the lower half: one instruction from sm_80 on. Rounds
// to nearest even; NaN stays NaN.
__device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
  return {static_cast<uint16_t>(narrow_pair(x, 0.0f))};
}

// e^x for the element type: in f32 to the last places, for bf16 in three instructions (subnormal
// results become 0).
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(T) == 4) return expf(x);
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

// Number of elements in 16 bytes.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// n is a multiple of kVector<T>, p is aligned to 16 bytes.
template <int n>
__device__ __forceinline__ void load(const float* p, float (&x)[n]) {
  static_assert(n % 4 == 0);
#pragma unroll
  for (int i = 0; i < n; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(p + i);
    x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
  }
}
template <int n>
__device__ __forceinline__ void load(const bfloat16* p, float (&x)[n]) {
  static_assert(n % 8 == 0);
#pragma unroll
  for (int i = 0; i < n; i += 8) {
    const uint4 v = *reinterpret_cast<const uint4*>(p + i);
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[i + 2 * j] = __uint_as_float(word[j] << 16);
      x[i + 2 * j + 1] = __uint_as_float(word[j] & 0xffff0000u);
    }
  }
}
template <int n>
__device__ __forceinline__ void store(float* p, const float (&x)[n]) {
  static_assert(n % 4 == 0);
#pragma unroll
  for (int i = 0; i < n; i += 4)
    *reinterpret_cast<float4*>(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}
template <int n>
__device__ __forceinline__ void store(bfloat16* p, const float (&x)[n]) {
  static_assert(n % 8 == 0);
#pragma unroll
  for (int i = 0; i < n; i += 8) {
    *reinterpret_cast<uint4*>(p + i) =
        make_uint4(narrow_pair(x[i], x[i + 1]), narrow_pair(x[i + 2], x[i + 3]),
                   narrow_pair(x[i + 4], x[i + 5]), narrow_pair(x[i + 6], x[i + 7]));
  }
}

// ---- reductions (device) ------------------------------------------------------------------------

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
  static __device__ float identity() { return 0.0f; }
};
// Maximum in which NaN wins.
struct Maximum {
  __device__ __forceinline__ float operator()(float a, float b) const {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
  }
  static __device__ float identity() { return -__int_as_float(0x7f800000); }
};

// Reduces over a warp. Every lane gets the result; the order is that of a butterfly, so it is
// always the same.
template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T x, Combine combine) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce(x, Sum{});
}
__device__ __forceinline__ float warp_max(float x) { return warp_reduce(x, Maximum{}); }

// Reduces over a block whose thread count is a multiple of 32; every thread gets the result. All
// threads must call it, and may call it again right away.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T x, T identity, Combine combine) {
  __shared__ T of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  x = warp_reduce(x, combine);
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  x = warp_reduce(lane < warps ? of_warp[lane] : identity, combine);
  __syncthreads();
  return x;
}
template <class T>
__device__ __forceinline__ T block_sum(T x) {
  return block_reduce(x, T(0), Sum{});
}
__device__ __forceinline__ float block_max(float x) {
  return block_reduce(x, Maximum::identity(), Maximum{});
}

#endif  // __CUDACC__

}  // namespace llamaforge::cuda

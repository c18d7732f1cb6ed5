// Shared by argmax, sample and sample_rows: the first of a row's largest numbers, keys that
// order logits, and running sums.
#pragma once

#include "cuda/ops/pack.h"

namespace llamaforge::cuda {

#ifdef __CUDACC__

// A number and its index. NaN is the largest; of equal numbers the first wins.
template <class V>
struct Ranked {
  V value;
  int32_t index;
};
struct Better {
  template <class V>
  __device__ Ranked<V> operator()(const Ranked<V>& a, const Ranked<V>& b) const {
    if (a.index < 0) return b;
    if (b.index < 0) return a;
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan || b_nan) return a_nan && (!b_nan || a.index < b.index) ? a : b;
    return a.value > b.value || (a.value == b.value && a.index < b.index) ? a : b;
  }
};

__device__ inline int32_t comparable(int32_t x) { return x; }
template <class T>
__device__ float comparable(T x) {
  return widen(x);
}

// Returns the largest number of a pack; NaN wins.
template <int n>
__device__ __forceinline__ int32_t largest_of(const Pack<int32_t, n>& pack) {
  int32_t largest = pack.value[0];
#pragma unroll
  for (int k = 1; k < n; ++k) largest = max(largest, pack.value[k]);
  return largest;
}
template <class T, int n>
__device__ __forceinline__ float largest_of(const Pack<T, n>& pack) {
  RunningMaximum<T> largest;
  largest.see(pack);
  return largest.value();
}

// Running sum over the block's kThreadsOfBlock threads, in their order. `total` becomes the sum of
// all.
template <int kThreadsOfBlock, class Number>
__device__ Number block_scan(Number x, Number& total) {
  __shared__ Number of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Number before = __shfl_up_sync(0xffffffffu, x, distance);
    if (lane >= distance) x += before;
  }
  if (lane == 31) of_warp[warp] = x;
  __syncthreads();
  Number before = 0;
  total = 0;
  for (int w = 0; w < kThreadsOfBlock / 32; ++w) {
    if (w == warp) before = total;
    total += of_warp[w];
  }
  __syncthreads();
  return before + x;
}

// Returns the first of a row's largest numbers. kLanes neighbouring lanes of a warp compute it (all
// lanes of the warp must call it) or, with kWholeBlock, the block; each of them gets the result.
// Accesses are 16 bytes if the row allows them: only the largest number of each pack is looked at
// until the best pack is found.
constexpr int kWholeBlock = 0;
template <int kLanes, class T, class V = decltype(comparable(T()))>
__device__ Ranked<V> first_of_largest(const T* row, int64_t n) {
  constexpr int kCount = kVector<T>;
  constexpr bool kBlock = kLanes == kWholeBlock;
  const int lane = threadIdx.x % 32, thread = kBlock ? threadIdx.x : lane % (kBlock ? 32 : kLanes),
            threads = kBlock ? blockDim.x : kLanes;
  const int64_t whole = reinterpret_cast<uintptr_t>(row) % 16 == 0 ? n / kCount * kCount : 0;
  V largest(0);
  int64_t pack_at = -1;
#pragma unroll 4
  for (int64_t i = int64_t{thread} * kCount; i < whole; i += int64_t{threads} * kCount) {
    const V next = largest_of(load_pack<T, kCount>(row + i));
    if (pack_at < 0 || (largest == largest && !(next <= largest))) {
      largest = next;
      pack_at = i;
    }
  }
  Ranked<V> best{V(0), -1};
  if (pack_at >= 0) {
    const auto pack = load_pack<T, kCount>(row + pack_at);
#pragma unroll
    for (int k = kCount - 1; k >= 0; --k) {
      const V value = comparable(pack.value[k]);
      if (value == largest || value != value) best = {value, static_cast<int32_t>(pack_at + k)};
    }
  }
  for (int64_t i = whole + thread; i < n; i += threads) {
    best = Better{}(best, Ranked<V>{comparable(row[i]), static_cast<int32_t>(i)});
  }
  auto across = [&] {
#pragma unroll
    for (int distance = (kBlock ? 32 : kLanes) / 2; distance > 0; distance /= 2) {
      const Ranked<V> other{__shfl_xor_sync(0xffffffffu, best.value, distance),
                            __shfl_xor_sync(0xffffffffu, best.index, distance)};
      best = Better{}(best, other);
    }
  };
  across();
  if constexpr (kBlock) {
    __shared__ Ranked<V> of_warp[32];
    if (lane == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    best = lane < static_cast<int>(blockDim.x / 32) ? of_warp[lane] : Ranked<V>{V(0), -1};
    across();
    __syncthreads();
  }
  return best;
}
template <int kLanes, class T>
__device__ int32_t first_maximum(const T* row, int64_t n) {
  return first_of_largest<kLanes>(row, n).index;
}

// A larger logit gets a smaller key.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 and 0 are a tie
  return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}
__device__ inline float logit_of(uint32_t key) {
  const uint32_t bits = ~key;
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

#endif

}  // namespace llamaforge::cuda

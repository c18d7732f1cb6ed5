// What argmax and sample share: rows to choose from, and the first of the largest numbers of one.
#pragma once

#include "cuda/pack.h"

namespace llamaforge::cuda {

struct RowShape {
  int64_t rows, length;
};

inline RowShape check_rows(const char* name, const Tensor& x, const Tensor& index) {
  LF_CHECK(x.rank() >= 1 && x.dim(-1) >= 1, "expected {} with a last axis of at least 1, got {}", name,
           to_string(x.shape));
  check_dtype("the result", index, DType::i32);
  const RowShape shape = {x.numel() / x.dim(-1), x.dim(-1)};
  LF_CHECK(shape.length <= INT32_MAX, "the last axis of {} is longer than an i32 index can say", to_string(x.shape));
  LF_CHECK(index.numel() == shape.rows, "expected a result of {} elements, one a row of {} {}, got {}", shape.rows, name,
           to_string(x.shape), to_string(index.shape));
  return shape;
}

#ifdef __CUDACC__

// A number and where it stands. NaN is the largest; of equals the first wins.
template <class V> struct Ranked {
  V value;
  int32_t index;
};
struct Better {
  template <class V> __device__ Ranked<V> operator()(const Ranked<V>& a, const Ranked<V>& b) const {
    if (a.index < 0) return b;
    if (b.index < 0) return a;
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan || b_nan) return a_nan && (!b_nan || a.index < b.index) ? a : b;
    return a.value > b.value || (a.value == b.value && a.index < b.index) ? a : b;
  }
};

__device__ inline int32_t comparable(int32_t x) { return x; }
template <class T> __device__ float comparable(T x) { return widen(x); }

// By the whole block; every thread gets it. In 16-byte accesses where the row allows them.
template <class T> __device__ int32_t first_maximum(const T* row, int64_t n) {
  using V = decltype(comparable(row[0]));
  constexpr int kCount = kVector<T>;
  Ranked<V> best{V(0), -1};
  const bool packs = reinterpret_cast<uintptr_t>(row) % 16 == 0;
  const int64_t whole = packs ? n / kCount * kCount : 0;
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < whole; i += int64_t{blockDim.x} * kCount) {
    const auto pack = load_pack<T, kCount>(row + i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      best = Better{}(best, Ranked<V>{comparable(pack.value[k]), static_cast<int32_t>(i + k)});
    }
  }
  for (int64_t i = whole + threadIdx.x; i < n; i += blockDim.x) {
    best = Better{}(best, Ranked<V>{comparable(row[i]), static_cast<int32_t>(i)});
  }
  auto across = [&](int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      const Ranked<V> other{__shfl_xor_sync(0xffffffffu, best.value, distance),
                            __shfl_xor_sync(0xffffffffu, best.index, distance)};
      best = Better{}(best, other);
    }
  };
  __shared__ Ranked<V> of_warp[32];
  across(32);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  best = lane < warps ? of_warp[lane] : Ranked<V>{V(0), -1};
  across(32);
  __syncthreads();
  return best.index;
}

#endif

}  // namespace llamaforge::cuda

// y (N) = x (K) · wᵀ with w (N,K) row-major: a linear layer on one token. Reading w once is the
// bound. A warp has a row of w, with up to 8 loads of 16 bytes per lane in flight. The first loads
// start before x has arrived in shared memory, and the row is prefetched before the kernel that
// makes x has ended. Sums are f32, in an order that depends on K alone.
#include "cuda/gemm/gemv.h"
#include "cuda/ops/pack.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {

namespace {

constexpr int kAtOnce = 8;
constexpr int kWarps = kThreads / 32;
constexpr int kSharedBytes = 48 << 10;

// The pointers have no __restrict__, so that no load moves before wait_for_previous().
template <class T, class Y>
__global__ void __launch_bounds__(kThreads, 4)
    vector_kernel(const T* x, const T* w, Y* y, int n, int k) {
  constexpr int kCount = kVector<T>, kStep = 32 * kCount;
  extern __shared__ uint4 shared[];
  auto* row = reinterpret_cast<T*>(shared);
  const int lane = threadIdx.x % 32, output = blockIdx.x * kWarps + threadIdx.x / 32;
  const T* from = w + int64_t{min(output, n - 1)} * k;
  uint4 weights[kAtOnce];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int at = first + j * kStep + lane * kCount;
      weights[j] = at < k ? *reinterpret_cast<const uint4*>(from + at) : make_uint4(0, 0, 0, 0);
    }
  };
  // The row is prefetched into the L2 cache while the previous kernel runs. The L2 cache also sees
  // anything that the previous kernel still writes.
#if __CUDA_ARCH__ >= 900
  if (lane == 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                 "r"(k * static_cast<int>(sizeof(T)))
                 : "memory");
  }
#endif
  let_next_start();
  wait_for_previous();
  fetch(0);
  for (int i = threadIdx.x * kCount; i < k; i += kThreads * kCount) {
    *reinterpret_cast<uint4*>(row + i) = *reinterpret_cast<const uint4*>(x + i);
  }
  __syncthreads();
  float sums[2] = {};
  for (int first = 0; first < k; first += kAtOnce * kStep) {
    if (first > 0) fetch(first);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int at = first + j * kStep + lane * kCount;
      if (at >= k) break;
      float a[kCount], b[kCount];
      load(row + at, a);
      load(reinterpret_cast<const T*>(&weights[j]), b);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i % 2] += a[i] * b[i];
    }
  }
  const float sum = warp_sum(sums[0] + sums[1]);
  if (lane == 0 && output < n) y[output] = narrow<Y>(sum);
}

template <class T, class Y>
void launch(CudaStream& cuda, const void* x, const void* w, void* y, const GemmShape& shape) {
  const auto blocks = static_cast<unsigned>((shape.n + kWarps - 1) / kWarps);
  launch_early(cuda, vector_kernel<T, Y>, blocks, kThreads,
               static_cast<size_t>(shape.k) * sizeof(T), static_cast<const T*>(x),
               static_cast<const T*>(w), static_cast<Y*>(y), static_cast<int>(shape.n),
               static_cast<int>(shape.k));
}

}  // namespace

bool multiply_vector(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a,
                     const GemmOperand& b, void* c, bool accumulate) {
  const auto bytes = static_cast<int64_t>(size_of(shape.input));
  const bool takes = shape.batch == 1 && shape.m == 1 && !a.transposed && b.transposed &&
                     !accumulate && shape.n >= 1 && shape.n <= INT32_MAX - kWarps &&
                     shape.k * bytes % 16 == 0 && shape.k * bytes <= kSharedBytes && shape.k >= 1 &&
                     aligned16({a.data, b.data});
  if (!takes) return false;
  if (shape.input == DType::f32) {
    launch<float, float>(cuda, a.data, b.data, c, shape);
  } else if (shape.output == DType::f32) {
    launch<bfloat16, float>(cuda, a.data, b.data, c, shape);
  } else {
    launch<bfloat16, bfloat16>(cuda, a.data, b.data, c, shape);
  }
  return true;
}

}  // namespace llamaforge::cuda

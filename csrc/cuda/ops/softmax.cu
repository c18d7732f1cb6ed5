// softmax over the last axis:  y = exp(x - max) / sum;  log form:  y = x - max - log(sum).
// backward:  dx = y · (dy - sum(dy · y) / sum(y));  log form:  dx = dy - exp(y) · sum(dy).
// sum(y) differs from 1 only by the rounding of y to bf16; without the division, that rounding
// would leave a part of the common offset of dy. x (N,D) -> y (N,D). A warp (short rows) or a block
// has a row and keeps it in registers, up to 65536 numbers of bf16; longer rows are read again and
// come from the caches. Device memory is read and written once. A thread's sums are f32 within a
// pack and f64 beyond; for bf16 in registers they are f32 throughout. A row that is -inf
// throughout, or holds +inf or NaN, gives NaN, as in PyTorch.
#include <cfloat>
#include <type_traits>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/softmax.h"

namespace llamaforge::cuda {

namespace {

constexpr int kKept = 8;            // packs of a row that a thread keeps
constexpr int64_t kWarpRow = 1024;  // longest row for a warp that reads the row again
// Most threads of a block that shares a row; backward keeps two rows.
constexpr int kMostForward = 1024, kMostBackward = 512;

// Reductions over the threads that share a row: a warp or the block.
template <bool kBlock>
__device__ float row_max(float x) {
  return kBlock ? block_max(x) : warp_max(x);
}
template <bool kBlock, class Sum>
__device__ Sum row_sum(Sum x) {
  return kBlock ? block_sum(x) : warp_sum(x);
}

// Type of sums. For bf16 in registers a thread sums at most 64 numbers, for which f32 is exact
// enough.
template <class T, int kPacks>
using SumOf = std::conditional_t<sizeof(T) == 2 && kPacks != 0, float, double>;

// This thread's packs of a row: loaded once and kept, or read again on each use (kPacks 0).
template <int kCount, int kPacks, class T>
struct RowPacks {
  const T* x;
  int64_t n;
  int thread, threads;
  Pack<T, kCount> kept[kPacks > 0 ? kPacks : 1];

  __device__ RowPacks(const T* x, int64_t n, int thread, int threads)
      : x(x), n(n), thread(thread), threads(threads) {
    if constexpr (kPacks > 0) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int64_t i = (int64_t{p} * threads + thread) * kCount;
        if (i < n) kept[p] = load_pack<T, kCount>(x + i);
      }
    }
  }
  // Calls body(index in the row, pack, number of the pack).
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    if constexpr (kPacks > 0) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int64_t i = (int64_t{p} * threads + thread) * kCount;
        if (i < n) body(i, kept[p], p);
      }
    } else {
      for (int64_t i = int64_t{thread} * kCount; i < n; i += int64_t{threads} * kCount)
        body(i, load_pack<T, kCount>(x + i), 0);
    }
  }
  __device__ __forceinline__ Pack<T, kCount> at(int64_t i, int p) const {
    if constexpr (kPacks > 0) return kept[p];
    return load_pack<T, kCount>(x + i);
  }
};

template <bool kBlock, int kCount, int kPacks, class T>
__global__ void __launch_bounds__(kBlock ? kMostForward : kThreads)
    softmax_kernel(const T* x, T* y, int64_t rows, int64_t n, bool log_form) {
  const int threads = kBlock ? blockDim.x : 32, thread = kBlock ? threadIdx.x : threadIdx.x % 32;
  const int64_t first = kBlock ? blockIdx.x : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * blockDim.x / 32;
  for (int64_t row = first; row < rows; row += step) {
    const RowPacks<kCount, kPacks, T> packs(x + row * n, n, thread, threads);
    T* to = y + row * n;
    RunningMaximum<T> largest;
    packs.each([&](int64_t, const auto& pack, int) { largest.see(pack); });
    const float highest = row_max<kBlock>(largest.value());
    SumOf<T, kPacks> sum = 0;
    packs.each([&](int64_t, const auto& pack, int) {
      float part = 0;
#pragma unroll
      for (int k = 0; k < kCount; ++k) part += exponential<T>(widen(pack.value[k]) - highest);
      sum += part;
    });
    sum = row_sum<kBlock>(sum);
    const auto write = [&](const auto& value_of) {
      packs.each([&](int64_t i, const auto& pack, int) {
        float out[kCount];
#pragma unroll
        for (int k = 0; k < kCount; ++k) out[k] = value_of(widen(pack.value[k]) - highest);
        if constexpr (kCount == kVector<T>) {
          store(to + i, out);
        } else {
#pragma unroll
          for (int k = 0; k < kCount; ++k) to[i + k] = narrow<T>(out[k]);
        }
      });
    };
    if (log_form) {
      const float log_sum = static_cast<float>(log(sum));
      write([&](float shifted) { return shifted - log_sum; });
    } else {
      const float factor = static_cast<float>(1 / sum);
      write([&](float shifted) { return exponential<T>(shifted) * factor; });
    }
  }
}

template <bool kBlock, int kCount, int kPacks, class T>
__global__ void __launch_bounds__(kBlock ? kMostBackward : kThreads)
    softmax_backward_kernel(const T* dy, const T* y, T* dx, int64_t rows, int64_t n,
                            bool log_form) {
  const int threads = kBlock ? blockDim.x : 32, thread = kBlock ? threadIdx.x : threadIdx.x % 32;
  const int64_t first = kBlock ? blockIdx.x : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * blockDim.x / 32;
  for (int64_t row = first; row < rows; row += step) {
    const int64_t start = row * n;
    const RowPacks<kCount, kPacks, T> gradients(dy + start, n, thread, threads),
        values(y + start, n, thread, threads);
    SumOf<T, kPacks> dot = 0, sum = 0;
    gradients.each([&](int64_t i, const auto& gradient, int p) {
      const auto value = values.at(i, p);
      float part = 0, other = 0;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float g = widen(gradient.value[k]), v = widen(value.value[k]);
        part += log_form ? g : g * v;
        other += v;
      }
      dot += part;
      sum += other;
    });
    dot = row_sum<kBlock>(dot);
    sum = row_sum<kBlock>(sum);
    const float mean = static_cast<float>(log_form ? dot : dot / sum);
    // In the log form exp(y) is positive unless y is -inf. Where exp(y) rounds to 0, 0 times an
    // infinite sum would be NaN.
    const float least = isinf(mean) ? FLT_MIN : 0.0f;
    gradients.each([&](int64_t i, auto gradient, int p) {
      const auto value = values.at(i, p);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float g = widen(gradient.value[k]), v = widen(value.value[k]);
        const float p = exponential<T>(v);
        gradient.value[k] = narrow<T>(log_form ? g - (p < least && v > -INFINITY ? least : p) * mean
                                               : v * (g - mean));
      }
      store_pack(dx + start + i, gradient);
    });
  }
}

// Calls launch.operator()<block or warp, size of a pack, packs kept>(blocks, threads) for rows of n
// elements.
template <class T, int kMostThreads, class Launch>
void with_row_shape(CudaStream& cuda, int64_t rows, int64_t n, bool packs, const Launch& launch) {
  constexpr int kCount = kVector<T>;
  const unsigned warps = blocks_for(cuda, rows, kThreads / 32), blocks = blocks_for(cuda, rows, 1);
  if (packs && n <= 32 * kCount * kKept) {
    const auto with = [&]<int kPacks>() {
      launch.template operator()<false, kCount, kPacks>(warps, kThreads);
    };
    if (n <= 32 * kCount) {
      with.template operator()<1>();
    } else if (n <= 32 * kCount * 2) {
      with.template operator()<2>();
    } else if (n <= 32 * kCount * 4) {
      with.template operator()<4>();
    } else {
      with.template operator()<kKept>();
    }
  } else if (packs && n <= kMostThreads * kCount * kKept) {
    int threads = kThreads;
    while (n > int64_t{threads} * kCount * kKept) threads *= 2;
    launch.template operator()<true, kCount, kKept>(blocks, threads);
  } else if (packs) {
    launch.template operator()<true, kCount, 0>(blocks, kMostThreads);
  } else if (n <= kWarpRow) {
    launch.template operator()<false, 1, 0>(warps, kThreads);
  } else {
    launch.template operator()<true, 1, 0>(blocks, kThreads);
  }
  check_launch();
}

}  // namespace

// y may be the same memory as x.
void softmax(Stream& stream, In x, Out y, bool log) {
  check_softmax(x, y);
  CudaStream& cuda = on_cuda(stream);
  const int64_t n = x.dim(-1), rows = x.numel() / n;
  with_float("x", x, [&]<class T>() {
    const bool packs = n % kVector<T> == 0 && aligned16({x.raw(), y.raw()});
    with_row_shape<T, kMostForward>(
        cuda, rows, n, packs,
        [&]<bool kBlock, int kCount, int kPacks>(unsigned blocks, int threads) {
          softmax_kernel<kBlock, kCount, kPacks>
              <<<blocks, threads, 0, cuda.compute()>>>(x.data<T>(), y.data<T>(), rows, n, log);
        });
  });
}

// dx may be the same memory as dy or y.
void softmax_backward(Stream& stream, In dy, In y, Out dx, bool log) {
  check_softmax_backward(dy, y, dx);
  CudaStream& cuda = on_cuda(stream);
  const int64_t n = y.dim(-1), rows = y.numel() / n;
  with_float("y", y, [&]<class T>() {
    const bool packs = n % kVector<T> == 0 && aligned16({dy.raw(), y.raw(), dx.raw()});
    with_row_shape<T, kMostBackward>(
        cuda, rows, n, packs,
        [&]<bool kBlock, int kCount, int kPacks>(unsigned blocks, int threads) {
          softmax_backward_kernel<kBlock, kCount, kPacks><<<blocks, threads, 0, cuda.compute()>>>(
              dy.data<T>(), y.data<T>(), dx.data<T>(), rows, n, log);
        });
  });
}

}  // namespace llamaforge::cuda

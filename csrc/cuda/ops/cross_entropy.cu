// Mean cross-entropy of given logits (N,V) and target ids i32 (N); targets equal to ignore_index
// are left out.
//   forward   loss = mean((max - logits[target]) + log_sum),  log_sum = log(sum(exp(logits - max)))
//   backward  d_logits = d_loss / count · (exp((logits - max) - log_sum) - onehot(target))
//             and 0 in ignored rows
// The backward pass gets max and log_sum separately: far from 0 their sum would round log_sum away.
// A block takes one row. Forward reads the logits once and keeps a running maximum and sum;
// backward reads and writes them once.

#include <type_traits>

#include "cuda/ops/cross_entropy.cuh"
#include "cuda/ops/cuda_ops.h"
#include "ops/checks/cross_entropy.h"

namespace llamaforge::cuda {

namespace {

// The largest number seen so far, and the sum of e^(x - largest). Rows stream through it, so
// nothing waits for the row's end.
template <class T>
struct RunningSum {
  using Sum = std::conditional_t<sizeof(T) == 2, float, double>;
  float highest = Maximum::identity();
  Sum sum = 0;

  // Avoids -inf - -inf when only -inf has been seen.
  static __device__ __forceinline__ float base_of(float highest) {
    return highest == Maximum::identity() ? 0.0f : highest;
  }
  template <int kCount, int kPacks>
  __device__ __forceinline__ void see(const Pack<T, kCount> (&packs)[kPacks]) {
    RunningMaximum<T> largest;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) largest.see(packs[p]);
    const float next = Maximum{}(highest, largest.value()), base = base_of(next);
    sum *= exponential<T>(highest - base);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      float part = 0;
#pragma unroll
      for (const T x : packs[p].value) part += exponential<T>(widen(x) - base);
      sum += part;
    }
    highest = next;
  }
};

constexpr int kAtOnce = 4;  // packs in flight

template <class T, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    forward_kernel(const T* __restrict__ logits, const int32_t* __restrict__ targets,
                   float* __restrict__ losses, float* __restrict__ statistics, int64_t classes,
                   int64_t ignore_index) {
  constexpr int64_t kStep = int64_t{kRowThreads} * kCount;
  const int64_t n = blockIdx.x;
  const T* row = logits + n * classes;
  RunningSum<T> own;
  int64_t at = int64_t{threadIdx.x} * kCount;
  for (; at + (kAtOnce - 1) * kStep < classes; at += kAtOnce * kStep) {
    Pack<T, kCount> packs[kAtOnce];
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) packs[p] = load_pack<T, kCount>(row + at + p * kStep);
    own.see(packs);
  }
  for (; at < classes; at += kStep) {
    const Pack<T, kCount> pack[1] = {load_pack<T, kCount>(row + at)};
    own.see(pack);
  }
  const float highest = block_max(own.highest);
  const float factor = exponential<T>(own.highest - highest);  // a row of -inf gives NaN
  const double sum = block_sum(static_cast<double>(own.sum) * factor);
  if (threadIdx.x != 0) return;
  const float log_sum = static_cast<float>(log(sum));
  const int64_t target = targets[n];
  statistics[n] = highest;
  statistics[gridDim.x + n] = log_sum;
  const bool counts = target != ignore_index && target >= 0 && target < classes;
  losses[n] = counts ? (highest - widen(row[target])) + log_sum : 0.0f;
}

// d_logits may be the same memory as logits.
template <class T, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    backward_kernel(const float* __restrict__ d_loss, const T* logits,
                    const int32_t* __restrict__ targets, const float* __restrict__ statistics,
                    T* d_logits, const TargetCount* __restrict__ count, int64_t classes,
                    int64_t ignore_index) {
  const int64_t n = blockIdx.x, target = targets[n];
  const bool ignored = target == ignore_index || target < 0 || target >= classes;
  const float scale = *d_loss * count->inverse, highest = statistics[n],
              log_sum = statistics[gridDim.x + n];
  for (int64_t at = int64_t{threadIdx.x} * kCount; at < classes;
       at += int64_t{kRowThreads} * kCount) {
    auto pack = load_pack<T, kCount>(logits + n * classes + at);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float p = exponential<T>((widen(pack.value[k]) - highest) - log_sum);
      pack.value[k] = narrow<T>(ignored ? 0.0f : (at + k == target ? p - 1.0f : p) * scale);
    }
    store_pack(d_logits + n * classes + at, pack);
  }
}

}  // namespace

void cross_entropy_forward(Stream& stream, In logits, In targets, Out loss, Out statistics,
                           int64_t ignore_index) {
  CudaStream& cuda = on_cuda(stream);
  check_cross_entropy_forward(logits, targets, loss, statistics);
  const int64_t rows = logits.dim(0), classes = logits.dim(1);
  const Scratch count(stream, sizeof(TargetCount)),
      losses(stream, static_cast<size_t>(rows) * sizeof(float));
  count_targets(cuda, targets, classes, ignore_index, count.as<TargetCount>());
  if (rows > 0) {
    with_float("logits", logits, [&]<class T>() {
      const bool packs = classes % kVector<T> == 0 && aligned16({logits.raw()});
      const auto kernel = packs ? forward_kernel<T, kVector<T>> : forward_kernel<T, 1>;
      kernel<<<static_cast<unsigned>(rows), kRowThreads, 0, cuda.compute()>>>(
          logits.data<T>(), targets.data<int32_t>(), losses.as<float>(), statistics.data<float>(),
          classes, ignore_index);
    });
    check_launch();
  }
  mean_loss(cuda, losses.as<float>(), rows, count.as<TargetCount>(), loss.data<float>());
}

void cross_entropy_backward(Stream& stream, In d_loss, In logits, In targets, In statistics,
                            Out d_logits, int64_t ignore_index) {
  CudaStream& cuda = on_cuda(stream);
  check_cross_entropy_backward(d_loss, logits, targets, statistics, d_logits);
  const int64_t rows = logits.dim(0), classes = logits.dim(1);
  if (rows == 0) return;
  const Scratch count(stream, sizeof(TargetCount));
  count_targets(cuda, targets, classes, ignore_index, count.as<TargetCount>());
  with_float("logits", logits, [&]<class T>() {
    const bool packs = classes % kVector<T> == 0 && aligned16({logits.raw(), d_logits.raw()});
    const auto kernel = packs ? backward_kernel<T, kVector<T>> : backward_kernel<T, 1>;
    kernel<<<static_cast<unsigned>(rows), kRowThreads, 0, cuda.compute()>>>(
        d_loss.data<float>(), logits.data<T>(), targets.data<int32_t>(), statistics.data<float>(),
        d_logits.data<T>(), count.as<TargetCount>(), classes, ignore_index);
  });
  check_launch();
}

}  // namespace llamaforge::cuda

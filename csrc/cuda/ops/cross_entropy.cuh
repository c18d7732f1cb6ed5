// Pieces of cross-entropy: counting targets, one row of logits per block, the mean loss. Every sum
// has a fixed order.
#pragma once

#include "cuda/ops/pack.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {

// The number of targets that count, on the device.
struct TargetCount {
  double count;
  float inverse;  // 1 / count, or 0 if no target counts
};

constexpr int kCountThreads = 1024;
// Runs in one block. A target that is neither a class nor ignore_index is reported, and counts as
// ignored.
static __global__ void __launch_bounds__(kCountThreads)
    count_targets_kernel(const int32_t* targets, int64_t rows, int64_t classes,
                         int64_t ignore_index, TargetCount* result, FaultSite site) {
  double count = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kCountThreads) {
    const int64_t id = targets[row];
    if (id == ignore_index) continue;
    if (id < 0 || id >= classes) {
      report(site, static_cast<double>(id), static_cast<double>(row),
             static_cast<double>(classes - 1), static_cast<double>(ignore_index));
      continue;
    }
    count += 1;
  }
  count = block_sum(count);
  if (threadIdx.x == 0) *result = {count, count > 0 ? static_cast<float>(1.0 / count) : 0.0f};
}

inline FaultSite target_fault(CudaStream& cuda) {
  return cuda.fault_site("ERR_TARGET",
                         "target {} of row {} is neither in 0..{} nor the ignored {}");
}
inline void count_targets(CudaStream& cuda, const Tensor& targets, int64_t classes,
                          int64_t ignore_index, TargetCount* result) {
  count_targets_kernel<<<1, kCountThreads, 0, cuda.compute()>>>(
      targets.data<int32_t>(), targets.numel(), classes, ignore_index, result, target_fault(cuda));
  check_launch();
}

// Runs in one block: the mean of the losses, NaN if no target counts.
static __global__ void __launch_bounds__(kCountThreads)
    mean_loss_kernel(const float* losses, int64_t rows, const TargetCount* targets, float* loss) {
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kCountThreads) sum += losses[row];
  sum = block_sum(sum);
  if (threadIdx.x == 0)
    *loss =
        targets->count > 0 ? static_cast<float>(sum / targets->count) : __int_as_float(0x7fffffff);
}
inline void mean_loss(CudaStream& cuda, const float* losses, int64_t rows,
                      const TargetCount* targets, float* loss) {
  mean_loss_kernel<<<1, kCountThreads, 0, cuda.compute()>>>(losses, rows, targets, loss);
  check_launch();
}

// A row of logits for a block. A thread holds kPacks packs in registers; with kPacks 0, each pass
// reads the row again, which then comes from the caches.
template <class T, int kCount, int kPacks, int kRowThreads>
struct LogitsRow {
  static constexpr bool kHeld = kPacks > 0;
  const T* from;
  int64_t classes;
  Pack<T, kCount> held[kHeld ? kPacks : 1];

  __device__ __forceinline__ LogitsRow(const T* row, int64_t classes)
      : from(row), classes(classes) {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const int64_t at = (int64_t{threadIdx.x} + int64_t{i} * kRowThreads) * kCount;
        if (at < classes) held[i] = load_pack<T, kCount>(from + at);
      }
    }
  }
  // Calls body(place, pack) for this thread's packs; the body may change the pack.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const int64_t at = (int64_t{threadIdx.x} + int64_t{i} * kRowThreads) * kCount;
        if (at < classes) body(at, held[i]);
      }
    } else {
      for (int64_t at = int64_t{threadIdx.x} * kCount; at < classes;
           at += int64_t{kRowThreads} * kCount) {
        Pack<T, kCount> pack = load_pack<T, kCount>(from + at);
        body(at, pack);
      }
    }
  }
};

struct RowStatistics {
  float highest;
  double sum;  // of e^(x - highest)
};
template <class T, class Row>
__device__ __forceinline__ RowStatistics row_statistics(Row& row) {
  RunningMaximum<T> largest;
  row.each([&](int64_t, auto& pack) { largest.see(pack); });
  const float highest = block_max(largest.value());
  double sum = 0;
  row.each([&](int64_t, auto& pack) {
    float part = 0;
#pragma unroll
    for (const T x : pack.value) part += exponential<T>(widen(x) - highest);
    sum += part;
  });
  return {highest, block_sum(sum)};
}

constexpr int kRowThreads = 512;

// Calls body.operator()<count, packs>() with the access that fits a row of `classes` at these
// pointers.
template <class T, class Body>
void with_logits_access(int64_t classes, std::initializer_list<const void*> pointers,
                        const Body& body) {
  if (classes % kVector<T> != 0 || !aligned16(pointers)) return body.template operator()<1, 0>();
  const int64_t packs = (classes / kVector<T> + kRowThreads - 1) / kRowThreads;
  if (packs <= 4) return body.template operator()<kVector<T>, 4>();
  if (packs <= 8) return body.template operator()<kVector<T>, 8>();
  body.template operator()<kVector<T>, 0>();
}

}  // namespace llamaforge::cuda

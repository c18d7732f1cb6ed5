// Σ x² for the gradient norm, in two passes of fixed order: a block sums its share, then one block
// adds the shares. Four or eight squares are added in f32, everything else in double, so billions
// of elements lose no precision. NaN and infinity propagate. Floor: x is read once.

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::cuda {

namespace {

constexpr int kAtOnce = 4;  // packs in flight

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    shares_kernel(const T* __restrict__ x, double* __restrict__ shares, int64_t n) {
  const int64_t threads = int64_t{gridDim.x} * kThreads, packs = n / kCount;
  double sum = 0;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kAtOnce - 1) * threads < packs; i += kAtOnce * threads) {
    Pack<T, kCount> pack[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      pack[j] = load_pack<T, kCount>(x + (i + j * threads) * kCount);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      float part = 0;
#pragma unroll
      for (int k = 0; k < kCount; ++k) part += widen(pack[j].value[k]) * widen(pack[j].value[k]);
      sum += part;
    }
  }
  for (; i < packs; i += threads) {
    const Pack<T, kCount> pack = load_pack<T, kCount>(x + i * kCount);
    float part = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) part += widen(pack.value[k]) * widen(pack.value[k]);
    sum += part;
  }
  for (int64_t rest = packs * kCount + int64_t{blockIdx.x} * kThreads + threadIdx.x; rest < n;
       rest += threads) {
    sum += static_cast<double>(widen(x[rest])) * widen(x[rest]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) shares[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(const double* __restrict__ shares, int count, float* total) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += shares[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = static_cast<float>(sum);
}

}  // namespace

void sum_of_squares(Stream& stream, In x, Out sum) {
  CudaStream& cuda = on_cuda(stream);
  check_sum_of_squares(x, sum);
  const int64_t n = x.numel();
  const unsigned blocks = blocks_for(cuda, n, int64_t{kThreads} * kAtOnce * 4);
  const Scratch scratch(stream, blocks * sizeof(double));
  with_float("x", x, [&]<class T>() {
    const auto kernel = aligned16({x.raw()}) ? shares_kernel<T, kVector<T>> : shares_kernel<T, 1>;
    kernel<<<blocks, kThreads, 0, cuda.compute()>>>(x.data<T>(), scratch.as<double>(), n);
  });
  check_launch();
  total_kernel<<<1, kThreads, 0, cuda.compute()>>>(scratch.as<double>(), static_cast<int>(blocks),
                                                   sum.data<float>());
  check_launch();
}

}  // namespace llamaforge::cuda

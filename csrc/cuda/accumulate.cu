// y += x, and y += s · x with s on the device (a gradient that arrives from a scalar). x and y may differ in dtype; the sum
// is made in f32 and rounded once. Reads x and y, writes y.
#include "cuda/cuda_ops.h"
#include "cuda/pack.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::cuda {

namespace {

template <class X, class Y, int kCount> __global__ void accumulate_kernel(const X* x, const float* s, Y* y, int64_t n) {
  const float scale = s ? *s : 1.0f;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount; i < n;
       i += int64_t{gridDim.x} * blockDim.x * kCount) {
    if (i + kCount <= n) {
      const auto in = load_pack<X, kCount>(x + i);
      auto sum = load_pack<Y, kCount>(y + i);
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum.value[k] = narrow<Y>(fmaf(widen(in.value[k]), scale, widen(sum.value[k])));
      store_pack(y + i, sum);
    } else {
      for (int64_t k = i; k < n; ++k) y[k] = narrow<Y>(fmaf(widen(x[k]), scale, widen(y[k])));
    }
  }
}

void add(Stream& stream, const Tensor& x, const float* s, const Tensor& y) {
  CudaStream& cuda = on_cuda(stream);
  constexpr int kCount = 8;
  const int64_t n = x.numel();
  with_float("x", x, [&]<class X>() {
    with_float("y", y, [&]<class Y>() {
      if (takes_packs<X, kCount>({x.raw()}) && takes_packs<Y, kCount>({y.raw()})) {
        accumulate_kernel<X, Y, kCount><<<blocks_for(cuda, n, kThreads * kCount), kThreads, 0, cuda.compute()>>>(
            x.data<X>(), s, y.data<Y>(), n);
      } else {
        accumulate_kernel<X, Y, 1><<<blocks_for(cuda, n), kThreads, 0, cuda.compute()>>>(x.data<X>(), s, y.data<Y>(), n);
      }
    });
  });
  check_launch();
}

}  // namespace

void accumulate(Stream& stream, In x, InOut y) {
  check_accumulate(x, y);
  add(stream, x, nullptr, y);
}

void accumulate_scaled(Stream& stream, In x, In s, InOut y) {
  check_accumulate_scaled(x, s, y);
  add(stream, x, s.data<float>(), y);
}

}  // namespace llamaforge::cuda

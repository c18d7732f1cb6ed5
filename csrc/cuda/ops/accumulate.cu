// y += x, and y += s · x with s on the device (a gradient that arrives from a scalar). x and y may
// differ in dtype; the sum is computed in f32 and rounded once. Reads x and y, writes y.
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::cuda {

namespace {

// A thread has one pack, so it reads x and y in full before it writes, whatever the compiler knows
// about their aliasing.
template <class X, class Y, int kCount>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const X* x, const float* s, Y* y, int64_t packs) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= packs) return;
  const auto in = load_pack<X, kCount>(x + i * kCount);
  auto sum = load_pack<Y, kCount>(y + i * kCount);
  const float scale = s ? *s : 1.0f;
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    sum.value[k] = narrow<Y>(fmaf(widen(in.value[k]), scale, widen(sum.value[k])));
  store_pack(y + i * kCount, sum);
}

void add(Stream& stream, const Tensor& x, const float* s, const Tensor& y) {
  CudaStream& cuda = on_cuda(stream);
  const int64_t n = x.numel();
  with_float("x", x, [&]<class X>() {
    with_float("y", y, [&]<class Y>() {
      constexpr int kCount = std::min(kVector<X>, kVector<Y>);
      const auto run = [&]<int kElements>(int64_t first, int64_t count) {
        if (count == 0) return;
        const int64_t packs = count / kElements, blocks = (packs + kThreads - 1) / kThreads;
        LF_CHECK(blocks <= INT32_MAX, "x {} is too large", to_string(x.shape));
        accumulate_kernel<X, Y, kElements>
            <<<static_cast<unsigned>(blocks), kThreads, 0, cuda.compute()>>>(
                x.data<X>() + first, s, y.data<Y>() + first, packs);
        check_launch();
      };
      const bool packs = takes_packs<X, kCount>({x.raw()}) && takes_packs<Y, kCount>({y.raw()});
      const int64_t whole = packs ? n / kCount * kCount : 0;
      run.template operator()<kCount>(0, whole);
      run.template operator()<1>(whole, n - whole);
    });
  });
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

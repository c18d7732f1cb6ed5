// Dropout (Srivastava et al. 2014): y = x · m with m = 1 / (1 − rate) or 0, bit for bit as on the
// CPU (csrc/cpu/dropout.cpp). Word offset + i of a Philox sequence decides on element i, so
// backward makes the same m again. Reads and writes each element once; a thread makes one block of
// Philox for four elements.
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "cuda/ops/philox.h"
#include "ops/checks/random.h"

namespace llamaforge::cuda {

namespace {

__device__ __forceinline__ float dropped(float x, uint32_t word, const DropoutRule& rule) {
  return x * (word >> 8 < rule.dropped_below ? 0.0f : rule.scale);
}

// Elements 4b - skip to 4b - skip + 3 belong to block first + b. With kWhole, skip is 0, n is a
// multiple of 4, and packs of four are aligned.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* x, T* y, int64_t n, uint64_t seed, uint64_t first, int skip,
                   DropoutRule rule) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t b = int64_t{blockIdx.x} * kThreads + threadIdx.x; b * 4 - skip < n; b += threads) {
    const PhiloxWords words = philox(seed, kDropoutStream, first + static_cast<uint64_t>(b));
    if constexpr (kWhole) {
      Pack<T, 4> pack = load_pack<T, 4>(x + b * 4);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        pack.value[k] = narrow<T>(dropped(widen(pack.value[k]), words.word[k], rule));
      store_pack(y + b * 4, pack);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t at = b * 4 - skip + k;
        if (at >= 0 && at < n) y[at] = narrow<T>(dropped(widen(x[at]), words.word[k], rule));
      }
    }
  }
}

}  // namespace

void dropout(Stream& stream, In x, Out y, double rate, int64_t seed, int64_t offset) {
  const DropoutRule rule = check_dropout(x, y, rate, offset);
  const int64_t n = x.numel();
  if (n == 0) return;
  CudaStream& cuda = on_cuda(stream);
  with_float("x", x, [&]<class T>() {
    const int skip = static_cast<int>(offset % 4);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const bool whole = skip == 0 && n % 4 == 0 && takes_packs<T, 4>({from, to});
    auto* const kernel = whole ? dropout_kernel<T, true> : dropout_kernel<T, false>;
    kernel<<<blocks_for(cuda, n + skip, kThreads * 4), kThreads, 0, cuda.compute()>>>(
        from, to, n, static_cast<uint64_t>(seed), static_cast<uint64_t>(offset / 4), skip, rule);
    check_launch();
  });
}

}  // namespace llamaforge::cuda

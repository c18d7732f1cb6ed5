// softmax over the last axis:  y = exp(x - max) / sum;  log form:  y = x - max - log(sum).
// backward:  dx = y · (dy - sum(dy · y) / sum(y));  log form:  dx = dy - exp(y) · sum(dy).
// sum(y) is 1 but for the rounding of y to bf16, which would leave a part of what all of dy have in common.
// x (N,D) -> y (N,D). A warp (short rows) or a block has a row; the passes after the first find it in the caches, so device
// memory is read and written once. A thread's sums are f32 within a pack, f64 beyond.
// A row that is -inf throughout, or holds +inf or NaN, gives NaN, as in PyTorch.
#include "cuda/cuda_ops.h"
#include "cuda/pack.h"

namespace llamaforge::cuda {

namespace {

constexpr int64_t kWarpRow = 1024;  // longest row for a warp

// Reductions over the threads that share a row: a warp or the block.
template <bool kBlock> __device__ float row_max(float x) { return kBlock ? block_max(x) : warp_max(x); }
template <bool kBlock> __device__ double row_sum(double x) { return kBlock ? block_sum(x) : warp_sum(x); }

// body(i, pack of x) for this thread's packs of a row, the last of which may be partial for kCount 1 only.
template <int kCount, class T, class Body>
__device__ __forceinline__ void over_row(const T* x, int64_t n, int thread, int threads, const Body& body) {
  for (int64_t i = int64_t{thread} * kCount; i < n; i += int64_t{threads} * kCount) body(i, load_pack<T, kCount>(x + i));
}

template <bool kBlock, int kCount, class T>
__global__ void softmax_kernel(const T* x, T* y, int64_t rows, int64_t n, bool log_form) {
  const int threads = kBlock ? blockDim.x : 32, thread = kBlock ? threadIdx.x : threadIdx.x % 32;
  const int64_t first = kBlock ? blockIdx.x : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * blockDim.x / 32;
  for (int64_t row = first; row < rows; row += step) {
    const T* from = x + row * n;
    T* to = y + row * n;
    float highest = Maximum::identity();
    over_row<kCount>(from, n, thread, threads, [&](int64_t, const auto& pack) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) highest = Maximum{}(highest, widen(pack.value[k]));
    });
    highest = row_max<kBlock>(highest);
    double sum = 0;
    over_row<kCount>(from, n, thread, threads, [&](int64_t, const auto& pack) {
      float part = 0;
#pragma unroll
      for (int k = 0; k < kCount; ++k) part += expf(widen(pack.value[k]) - highest);
      sum += part;
    });
    sum = row_sum<kBlock>(sum);
    const float factor = static_cast<float>(1 / sum), log_sum = static_cast<float>(log(sum));
    over_row<kCount>(from, n, thread, threads, [&](int64_t i, auto pack) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float shifted = widen(pack.value[k]) - highest;
        pack.value[k] = narrow<T>(log_form ? shifted - log_sum : expf(shifted) * factor);
      }
      store_pack(to + i, pack);
    });
  }
}

template <bool kBlock, int kCount, class T>
__global__ void softmax_backward_kernel(const T* dy, const T* y, T* dx, int64_t rows, int64_t n, bool log_form) {
  const int threads = kBlock ? blockDim.x : 32, thread = kBlock ? threadIdx.x : threadIdx.x % 32;
  const int64_t first = kBlock ? blockIdx.x : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * blockDim.x / 32;
  for (int64_t row = first; row < rows; row += step) {
    const int64_t start = row * n;
    double dot = 0, sum = 0;
    over_row<kCount>(dy + start, n, thread, threads, [&](int64_t i, const auto& gradient) {
      const auto value = load_pack<T, kCount>(y + start + i);
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
    over_row<kCount>(dy + start, n, thread, threads, [&](int64_t i, auto gradient) {
      const auto value = load_pack<T, kCount>(y + start + i);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float g = widen(gradient.value[k]), v = widen(value.value[k]);
        gradient.value[k] = narrow<T>(log_form ? g - expf(v) * mean : v * (g - mean));
      }
      store_pack(dx + start + i, gradient);
    });
  }
}

// Calls launch(block or warp, pack size, blocks) as constants for rows of n elements.
template <class T, class Launch>
void with_row_shape(CudaStream& cuda, int64_t rows, int64_t n, bool packs, const Launch& launch) {
  const bool block = n > kWarpRow;
  const unsigned blocks = block ? blocks_for(cuda, rows, 1) : blocks_for(cuda, rows, kThreads / 32);
  using Packs = std::integral_constant<int, kVector<T>>;
  using Single = std::integral_constant<int, 1>;
  if (block) {
    packs ? launch(std::true_type{}, Packs{}, blocks) : launch(std::true_type{}, Single{}, blocks);
  } else {
    packs ? launch(std::false_type{}, Packs{}, blocks) : launch(std::false_type{}, Single{}, blocks);
  }
  check_launch();
}

}  // namespace

// y may be x.
void softmax(Stream& stream, In x, Out y, bool log) {
  LF_CHECK(x.rank() >= 1, "x has no axis");
  check_float("x", x);
  check_shape("y", y, x.shape);
  check_dtype("y", y, x.dtype);
  CudaStream& cuda = on_cuda(stream);
  const int64_t n = x.dim(-1), rows = x.numel() / n;
  with_float("x", x, [&]<class T>() {
    const bool packs = n % kVector<T> == 0 && aligned16({x.raw(), y.raw()});
    with_row_shape<T>(cuda, rows, n, packs, [&](auto block, auto count, unsigned blocks) {
      softmax_kernel<block.value, count.value>
          <<<blocks, kThreads, 0, cuda.compute()>>>(x.data<T>(), y.data<T>(), rows, n, log);
    });
  });
}

// dx may be dy or y.
void softmax_backward(Stream& stream, In dy, In y, Out dx, bool log) {
  LF_CHECK(y.rank() >= 1, "y has no axis");
  check_float("y", y);
  check_shape("dy", dy, y.shape);
  check_shape("dx", dx, y.shape);
  check_dtype("dy", dy, y.dtype);
  check_dtype("dx", dx, y.dtype);
  CudaStream& cuda = on_cuda(stream);
  const int64_t n = y.dim(-1), rows = y.numel() / n;
  with_float("y", y, [&]<class T>() {
    const bool packs = n % kVector<T> == 0 && aligned16({dy.raw(), y.raw(), dx.raw()});
    with_row_shape<T>(cuda, rows, n, packs, [&](auto block, auto count, unsigned blocks) {
      softmax_backward_kernel<block.value, count.value>
          <<<blocks, kThreads, 0, cuda.compute()>>>(dy.data<T>(), y.data<T>(), dx.data<T>(), rows, n, log);
    });
  });
}

}  // namespace llamaforge::cuda

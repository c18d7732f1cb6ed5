// argmax over the last axis: the first of the largest; a NaN counts as the largest, as in PyTorch. A warp (short rows)
// or a block has a row. Reads x once.
#include "cuda/cuda_ops.h"
#include "cuda/row_choice.h"

namespace llamaforge::cuda {

namespace {

constexpr int64_t kWarpRow = 8192;  // longest row for a warp

template <bool kBlock, class T>
__global__ void __launch_bounds__(1024) argmax_kernel(const T* x, int32_t* index, int64_t rows, int64_t n) {
  const int64_t first = kBlock ? blockIdx.x : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * blockDim.x / 32;
  for (int64_t row = first; row < rows; row += step) {
    const int32_t best = first_maximum<kBlock>(x + row * n, n);
    if (threadIdx.x % (kBlock ? 1024 : 32) == 0) index[row] = best;
  }
}

}  // namespace

void argmax(Stream& stream, In x, Out index) {
  const RowShape shape = check_rows("x", x, index);
  CudaStream& cuda = on_cuda(stream);
  auto run = [&]<class T>() {
    const auto launch = [&](const auto& kernel, unsigned blocks, unsigned threads) {
      kernel<<<blocks, threads, 0, cuda.compute()>>>(x.data<T>(), index.data<int32_t>(), shape.rows, shape.length);
    };
    // Few long rows would leave most of the GPU idle with a warp each.
    if (shape.length <= kWarpRow && (shape.length <= 1024 || shape.rows >= 8 * cuda.multiprocessors())) {
      launch(argmax_kernel<false, T>, blocks_for(cuda, shape.rows, kThreads / 32), kThreads);
    } else {
      const bool few = shape.rows < 2 * cuda.multiprocessors();
      const unsigned threads = shape.length > 32768 || (few && shape.length > 8192) ? 1024 : kThreads;
      launch(argmax_kernel<true, T>, blocks_for(cuda, shape.rows, 1), threads);
    }
  };
  x.dtype == DType::i32 ? run.template operator()<int32_t>() : with_float("x", x, run);
  check_launch();
}

}  // namespace llamaforge::cuda

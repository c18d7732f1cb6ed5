// argmax over the last axis: the first of the largest; a NaN counts as the largest, as in PyTorch.
// Eight lanes, a warp or a block take one row. Eight lanes suit short rows: their results meet in 3
// steps instead of 5, for 4 rows at a time. Reads x once.
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/row_choice.h"
#include "ops/checks/choice.h"

namespace llamaforge::cuda {

namespace {

constexpr int64_t kShortRow = 512;  // longest row for eight lanes
constexpr int64_t kWarpRow = 8192;  // longest row for a warp

template <int kLanes, class T>
__global__ void __launch_bounds__(1024)
    argmax_kernel(const T* x, int32_t* index, int64_t rows, int64_t n) {
  if constexpr (kLanes == kWholeBlock) {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
      const int32_t best = first_maximum<kWholeBlock>(x + row * n, n);
      if (threadIdx.x == 0) index[row] = best;
    }
  } else {
    constexpr int kRows = 32 / kLanes;  // rows per warp
    const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32;
    for (int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32 * kRows;
         first < rows; first += warps * kRows) {
      const int64_t row = first + threadIdx.x % 32 / kLanes;
      const int32_t best = first_maximum<kLanes>(x + min(row, rows - 1) * n, n);
      if (threadIdx.x % kLanes == 0 && row < rows) index[row] = best;
    }
  }
}

}  // namespace

void argmax(Stream& stream, In x, Out index) {
  const ChoiceSize shape = check_choice("x", x, index);
  CudaStream& cuda = on_cuda(stream);
  auto run = [&]<class T>() {
    const auto launch = [&](const auto& kernel, unsigned blocks, unsigned threads) {
      kernel<<<blocks, threads, 0, cuda.compute()>>>(x.data<T>(), index.data<int32_t>(), shape.rows,
                                                     shape.length);
    };
    // With a warp per row, a few long rows would leave most of the GPU idle.
    if (shape.length <= kShortRow) {
      launch(argmax_kernel<8, T>, blocks_for(cuda, shape.rows, kThreads / 8), kThreads);
    } else if (shape.length <= kWarpRow &&
               (shape.length <= 1024 || shape.rows >= 8 * cuda.multiprocessors())) {
      launch(argmax_kernel<32, T>, blocks_for(cuda, shape.rows, kThreads / 32), kThreads);
    } else {
      const bool few = shape.rows < 2 * cuda.multiprocessors();
      const unsigned threads =
          shape.length > 32768 || (few && shape.length > 8192) ? 1024 : kThreads;
      launch(argmax_kernel<kWholeBlock, T>, blocks_for(cuda, shape.rows, 1), threads);
    }
  };
  x.dtype == DType::i32 ? run.template operator()<int32_t>() : with_float("x", x, run);
  check_launch();
}

}  // namespace llamaforge::cuda

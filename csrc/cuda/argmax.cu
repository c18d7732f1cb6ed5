// argmax over the last axis: the first of the largest; a NaN counts as the largest, as in PyTorch. A block has a row.
#include "cuda/cuda_ops.h"
#include "cuda/row_choice.h"

namespace llamaforge::cuda {

namespace {

template <class T> __global__ void argmax_kernel(const T* x, int32_t* index, int64_t rows, int64_t n) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int32_t first = first_maximum(x + row * n, n);
    if (threadIdx.x == 0) index[row] = first;
  }
}

}  // namespace

void argmax(Stream& stream, In x, Out index) {
  const RowShape shape = check_rows("x", x, index);
  CudaStream& cuda = on_cuda(stream);
  const unsigned blocks = blocks_for(cuda, shape.rows, 1), threads = shape.length > 8192 ? 1024 : kThreads;
  auto run = [&]<class T>() {
    argmax_kernel<<<blocks, threads, 0, cuda.compute()>>>(x.data<T>(), index.data<int32_t>(), shape.rows, shape.length);
  };
  x.dtype == DType::i32 ? run.template operator()<int32_t>() : with_float("x", x, run);
  check_launch();
}

}  // namespace llamaforge::cuda

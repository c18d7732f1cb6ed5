// Matrix products for CUDA kernels that need one inside (linear_cross_entropy): what gemm.cpp runs after its checks.
#pragma once

#include "cuda/runtime/cuda_stream.h"
#include "runtime/tensor.h"

namespace llamaforge::cuda {

// One row-major matrix of each batch entry; `shared`: the same matrix for all of them.
struct GemmOperand {
  const void* data;
  bool transposed;  // stored as the transpose of what the product takes
  bool shared = false;
};

struct GemmShape {
  int64_t batch, m, n, k;
  DType input, output;  // both operands have the dtype `input`; sums are f32
};

// c (batch,m,n) = a (batch,m,k) · b (batch,k,n), or += with `accumulate`.
void multiply_matrices(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, void* c,
                       bool accumulate);

}  // namespace llamaforge::cuda

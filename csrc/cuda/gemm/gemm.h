// Matrix products inside other CUDA kernels (linear_cross_entropy): the part of gemm.cpp after its
// checks.
#pragma once

#include "cuda/runtime/cuda_stream.h"
#include "runtime/tensor.h"

namespace llamaforge::cuda {

// A row-major matrix per batch entry; `shared`: one matrix for all entries.
struct GemmOperand {
  const void* data;
  bool transposed;  // stored as the transpose of the product's operand
  bool shared = false;
};

struct GemmShape {
  int64_t batch, m, n, k;
  DType input, output;  // both operands have the dtype `input`; sums are f32
  // Whether a row of c must have the same bits for every m. Otherwise the algorithm may depend on
  // m.
  bool independent_rows = false;
};

// A product in fp8. The format of `a` is the shape's input; both operands have the summed axis
// contiguous (a not transposed, b transposed) and are multiplied with their scales.
struct Fp8Operands {
  DType b;
  const float *a_scale, *b_scale;  // on the device
  bool fast;                       // sums within the tensor cores, with fewer bits than f32
};

// c (batch,m,n) = a (batch,m,k) · b (batch,k,n), or += with `accumulate`.
void multiply_matrices(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a,
                       const GemmOperand& b, void* c, bool accumulate);

}  // namespace llamaforge::cuda

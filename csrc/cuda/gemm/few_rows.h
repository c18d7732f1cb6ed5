// Products of few rows with a weight, in bf16, on the tensor cores (few_rows.cu).
#pragma once

#include "cuda/gemm/gemm.h"
#include "cuda/runtime/cuda_stream.h"

namespace llamaforge::cuda {

constexpr int kFewRows = 16;  // most rows that few_rows() takes

struct FewRows {
  const bfloat16* x;  // (rows, k)
  const bfloat16* w;  // (products, k)
  bfloat16* y;        // (rows, products), with swiglu (rows, products / 2)
  int rows, products, k;
  bool swiglu = false;
  // With a norm, y is made of rms_norm(x + skip) instead of x, and r = x + skip is written. skip
  // and r may be null.
  const bfloat16* norm_weight = nullptr;
  const bfloat16* skip = nullptr;
  bfloat16* r = nullptr;
  float eps = 0;
};

// Returns false, having done nothing, if the sizes or addresses are not for this kernel.
bool few_rows(CudaStream& cuda, const FewRows& call);

// Launches a call that few_rows() takes, as a kernel of its own.
void launch_few_rows(CudaStream& cuda, const FewRows& call);
// Launches a call with the kernel for Hopper (few_rows_staged.cu). Returns false, having done
// nothing, on other GPUs and for sizes that are not for that kernel.
bool launch_staged_rows(CudaStream& cuda, const FewRows& call);

// y (M,N) = x (M,K) · wᵀ as few_rows, where it takes the product.
bool multiply_few_rows(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a,
                       const GemmOperand& b, void* c, bool accumulate);

}  // namespace llamaforge::cuda

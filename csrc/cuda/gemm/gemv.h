// Products of one row with a matrix, as for a token in generation. Only the matrix's bytes matter
// for their speed.
#pragma once

#include "cuda/gemm/gemm.h"

namespace llamaforge::cuda {

// Computes c (n) = a (k) · bᵀ with b (n,k) row-major. Returns false without doing anything if this
// kernel does not take the product.
bool multiply_vector(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a,
                     const GemmOperand& b, void* c, bool accumulate);

}  // namespace llamaforge::cuda

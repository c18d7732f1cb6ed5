// Products of one row with a matrix, where the matrix's bytes are all that matters: a token in generation.
#pragma once

#include "cuda/gemm/gemm.h"

namespace llamaforge::cuda {

// c (n) = a (k) · bᵀ with b (n,k) row-major, if this kernel takes such a product; false if not, and nothing has
// happened.
bool multiply_vector(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, void* c,
                     bool accumulate);

}  // namespace llamaforge::cuda

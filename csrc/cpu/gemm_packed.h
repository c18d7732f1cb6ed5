// Matrix products of our own, on the register blocks of tile.h. gemm.cpp says which products come
// here.
#pragma once

#include "cpu/gemm.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Like multiply_matrices, for a product that is not empty. Sums are f32, over blocks of k whose
// ends do not depend on the number of threads, added in their order: bits do not depend on it
// either.
void multiply_packed(Stream& stream, const GemmShape& shape, const GemmOperand& a,
                     const GemmOperand& b, void* c, bool accumulate);

}  // namespace llamaforge::LF_CPU_NAMESPACE

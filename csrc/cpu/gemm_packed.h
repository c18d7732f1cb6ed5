// Matrix products of our own, on the register blocks of tile.h. gemm.cpp says which products come here.
#pragma once

#include "cpu/gemm.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Like multiply_matrices, for a product that is not empty. Sums are f32 and run over k from its beginning to its end, one
// multiply-add after the other, however many threads share the work: bits do not depend on their number.
void multiply_packed(Stream& stream, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, void* c,
                     bool accumulate);

}  // namespace llamaforge::LF_CPU_NAMESPACE

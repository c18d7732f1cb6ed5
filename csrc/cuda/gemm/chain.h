// A chain: the products of few rows and the attentions of a graph that follow one another, computed
// by one kernel that stays on all multiprocessors (chain.cu), on Hopper.
#pragma once

#include <functional>

#include "cuda/gemm/few_rows.h"
#include "cuda/runtime/cuda_stream.h"

namespace llamaforge::cuda {

namespace paged {
struct Call;
}

// Both add an op of a graph to the stream's chain, which is launched before any other kernel. They
// return false, having done nothing, outside of graphs and for ops that are not for this kernel.
// Places, angles and earlier keys of an attention are not written by the graph; launch_alone
// launches it by itself.
bool chain_product(CudaStream& cuda, const FewRows& call);
bool chain_attention(CudaStream& cuda, const paged::Call& call, std::function<void()> launch_alone);

}  // namespace llamaforge::cuda

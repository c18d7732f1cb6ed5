// Documents that share a window and do not see each other: query t of a sequence sees keys starts[t] .. t. Tiles of
// keys before the first query's document, and of queries behind the last document of the keys, are left out; tiles that
// documents meet in are masked. Kernels without documents are instances of their own.
#pragma once

#include "cuda/attention/attention_kernels.h"

namespace llamaforge::cuda {

// The first key that a query sees, never behind the query itself; queries beyond the end count as the last.
__device__ __forceinline__ int first_key(const AttentionCall& call, int batch, int query) {
  const int row = min(query, call.time - 1);
  return min(max(call.starts[static_cast<size_t>(batch) * call.time + row], 0), row);
}

// Of the queries from `first_query` on, the first that does not see `key` any more, or the end. Called by all threads
// of a block; key >= first_query.
__device__ __forceinline__ int end_of_queries(const AttentionCall& call, int batch, int first_query, int key) {
  int end = first_query;
  while (true) {
    const int query = end + static_cast<int>(threadIdx.x);
    const int seeing = __syncthreads_count(query < call.time && first_key(call, batch, query) <= key);
    end += seeing;
    if (seeing < static_cast<int>(blockDim.x)) return end;
  }
}

}  // namespace llamaforge::cuda

// First keys, for queries that do not see all keys before them: query t of a sequence sees keys
// first_key[t] .. t, which keeps the documents of a window apart, or makes a sliding window. Tiles
// of keys that no query of a tile sees are left out. Tiles that some queries see in part are
// masked. Kernels without first keys are separate instances.
#pragma once

#include "cuda/attention/attention_kernels.h"

namespace llamaforge::cuda {

// Returns the first key that a query sees, never behind the query itself. Queries beyond the end
// count as the last query.
__device__ __forceinline__ int first_key(const AttentionCall& call, int batch, int query) {
  const int row = min(query, call.time - 1);
  return min(max(call.first_key[static_cast<size_t>(batch) * call.time + row], 0), row);
}

// Returns the first query from `first_query` on that does not see `key` any more, or the end. All
// threads of a block call it; key >= first_query.
__device__ __forceinline__ int end_of_queries(const AttentionCall& call, int batch, int first_query,
                                              int key) {
  int end = first_query;
  while (true) {
    const int query = end + static_cast<int>(threadIdx.x);
    const int seeing =
        __syncthreads_count(query < call.time && first_key(call, batch, query) <= key);
    end += seeing;
    if (seeing < static_cast<int>(blockDim.x)) return end;
  }
}

}  // namespace llamaforge::cuda

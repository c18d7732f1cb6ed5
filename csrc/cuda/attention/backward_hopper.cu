// Causal attention backward for Hopper: one pass over the queries and one over keys and values.
// Floor: 7 products of 128 × 128 × head size for each pair of tiles (the usual count is 5), and two
// exponentials for each score.
#include <algorithm>

#include "cuda/attention/backward_key_hopper.cuh"
#include "cuda/attention/backward_query_hopper.cuh"
#include "cuda/attention/tensor_map.h"

namespace llamaforge::cuda {
namespace {

constexpr int kLinesPerSection = 16;  // kv heads whose keys' gradients are computed side by side

template <int kHead, bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
            AttentionStatistics statistics, bfloat16* dqkv) {
  using Query = QueryGradient<kHead>;
  using Key = KeyGradient<kHead>;
  const int batch = call.batch, time = call.time, output_width = call.heads * kHead;
  const CUtensorMap rows_64 = tensor_map(qkv, batch, time, call.width(), 64);
  const CUtensorMap d_output_64 = tensor_map(d_o, batch, time, output_width, 64);

  const auto query_kernel = attention_query_gradient_kernel<kHead, kFirstKey>;
  const int query_bytes = sizeof(typename Query::Shared);
  LF_CUDA_CHECK(
      cudaFuncSetAttribute(query_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, query_bytes));
  const WorkQueue queue(call, Query::kQueries, statistics.next);
  query_kernel<<<std::min(queue.works, call.processors), Query::kThreads, query_bytes,
                 call.stream>>>(rows_64, d_output_64,
                                tensor_map(qkv, batch, time, call.width(), Query::kKeys),
                                statistics, dqkv, queue, call);
  LF_CUDA_CHECK(cudaGetLastError());

  const auto key_kernel = attention_key_gradient_kernel<kHead, kFirstKey>;
  const int key_bytes = sizeof(typename Key::Shared);
  LF_CUDA_CHECK(
      cudaFuncSetAttribute(key_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, key_bytes));
  const int blocks = (time + Key::kKeys - 1) / Key::kKeys * batch * call.kv_heads;
  key_kernel<<<blocks, Key::kThreads, key_bytes, call.stream>>>(
      rows_64, tensor_map(qkv, batch, time, call.width(), Key::kQueries),
      tensor_map(d_o, batch, time, output_width, Key::kQueries), statistics, dqkv, kLinesPerSection,
      call);
  LF_CUDA_CHECK(cudaGetLastError());
}

template <bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
            AttentionStatistics statistics, bfloat16* dqkv) {
  switch (call.head_size) {
    case 64: return launch<64, kFirstKey>(call, d_o, qkv, statistics, dqkv);
    case 96: return launch<96, kFirstKey>(call, d_o, qkv, statistics, dqkv);
    case 128: return launch<128, kFirstKey>(call, d_o, qkv, statistics, dqkv);
  }
}

}  // namespace

void attention_backward_hopper(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
                               AttentionStatistics statistics, bfloat16* dqkv) {
  call.first_key ? launch<true>(call, d_o, qkv, statistics, dqkv)
                 : launch<false>(call, d_o, qkv, statistics, dqkv);
}

}  // namespace llamaforge::cuda

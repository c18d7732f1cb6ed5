// Causal attention backward with mma.sync, for every chip from sm_80. There are two passes, as on
// Hopper: one over the queries of a block for dq, one over its keys for dk and dv. Nothing is added
// through global memory, so results are deterministic.
#include "cuda/attention/first_key.cuh"
#include "cuda/attention/mma.cuh"
#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {
namespace {

using namespace mma;

constexpr int kThreads = 128, kRows = 64;  // per block; 16 rows per warp

// ---- dq = scale · Σ dS k ------------------------------------------------------------------------

template <int kHead>
struct QueryShared {
  static constexpr int kKeys = 64;
  Tile<kRows, kHead> query, d_output;
  Tile<kKeys, kHead> key, value;
};

template <int kHead, bool kFirstKey>
__global__ void __launch_bounds__(kThreads)
    attention_query_gradient_mma_kernel(const bfloat16* __restrict__ d_o,
                                        const bfloat16* __restrict__ qkv,
                                        const AttentionStatistics statistics,
                                        bfloat16* __restrict__ dqkv, const AttentionCall call) {
  constexpr int kKeys = QueryShared<kHead>::kKeys;
  extern __shared__ __align__(16) unsigned char memory[];
  QueryShared<kHead>& shared = *reinterpret_cast<QueryShared<kHead>*>(memory);
  const int query_tile = gridDim.y - 1 - blockIdx.y;  // the longest walks first
  const int batch = blockIdx.x / call.heads, head = blockIdx.x % call.heads, size = call.head_size;
  const int warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32, first = query_tile * kRows;
  const size_t stride = call.width(),
               query_at = static_cast<size_t>(batch) * call.time * stride + head * size;
  const bfloat16* key = qkv + query_at + (call.heads + head / call.group() - head) * size;
  const bfloat16* value = key + call.kv_heads * size;
  const size_t output_stride = static_cast<size_t>(call.heads) * size;

  shared.query.template fetch<kThreads>(qkv + query_at, stride, first, call.time, size);
  shared.d_output.template fetch<kThreads>(
      d_o + static_cast<size_t>(batch) * call.time * output_stride + head * size, output_stride,
      first, call.time, size);
  float lse[2], row_sum[2], dq[kHead / 8][4] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const size_t line =
        static_cast<size_t>(blockIdx.x) * call.padded_time() + first + warp_row + lane / 4 + 8 * h;
    lse[h] = statistics.lse[line];
    row_sum[h] = statistics.row_sum[line];
  }
  const float to_base_2 = call.scale * kLog2E;
  const int tiles = (min(first + kRows, call.time) + kKeys - 1) / kKeys;
  const int first_tile = kFirstKey ? first_key(call, batch, first) / kKeys : 0;
  int from[2] = {};  // the first keys of this thread's rows
  if constexpr (kFirstKey) {
    for (int h = 0; h < 2; ++h)
      from[h] = first_key(call, batch, first + warp_row + lane / 4 + 8 * h);
  }
  for (int tile = first_tile; tile < tiles; ++tile) {
    shared.key.template fetch<kThreads>(key, stride, tile * kKeys, call.time, size);
    copy_commit();
    shared.value.template fetch<kThreads>(value, stride, tile * kKeys, call.time, size);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    float s[kKeys / 8][4] = {}, d_p[kKeys / 8][4] = {};
    multiply_rows<kKeys, kHead>(s, shared.query, warp_row, shared.key);
    copy_wait<0>();
    __syncthreads();
    multiply_rows<kKeys, kHead>(d_p, shared.d_output, warp_row, shared.value);
    const int before = tile * kKeys + lane % 4 * 2, diagonal = first + warp_row + lane / 4 - before;
    const auto gradients = [&](auto exponent) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float p = exp2_approximate(exponent(s[n][i], i / 2));
          const bool before_first = kFirstKey && 8 * n + i % 2 < from[i / 2] - before;
          s[n][i] = before_first || 8 * n + i % 2 > diagonal + i / 2 * 8
                        ? 0.0f
                        : p * (d_p[n][i] - row_sum[i / 2]);
        }
      }
    };
    if (lse[0] == -INFINITY) {  // large scores; the branch is uniform in a warp
      const int row = first + warp_row + lane / 4;
      const float2 exact[2] = {exact_row(statistics, call, blockIdx.x, row),
                               exact_row(statistics, call, blockIdx.x, row + 8)};
      gradients([&](float x, int h) { return fmaf(x - exact[h].x, to_base_2, -exact[h].y); });
    } else {
      gradients([&](float x, int h) { return fmaf(x, to_base_2, -lse[h]); });
    }
    multiply_columns<kKeys, kHead>(dq, s, shared.key);
    __syncthreads();
  }
  const float factor[2] = {call.scale, call.scale};
  write_rows<kHead>(dq, factor, dqkv + query_at, stride, first + warp_row, call.time, size);
}

// ---- dv = Σ pᵀ dO,  dk = scale · Σ dSᵀ q --------------------------------------------------------

template <int kHead>
struct KeyShared {
  // Few queries for large heads, so that four accumulators fit the registers.
  static constexpr int kQueries = kHead > 64 ? 32 : 64;
  Tile<kRows, kHead> key, value;
  Tile<kQueries, kHead> query, d_output;
};

template <int kHead, bool kFirstKey>
__global__ void __launch_bounds__(kThreads)
    attention_key_gradient_mma_kernel(const bfloat16* __restrict__ d_o,
                                      const bfloat16* __restrict__ qkv,
                                      const AttentionStatistics statistics,
                                      bfloat16* __restrict__ dqkv, const AttentionCall call) {
  constexpr int kQueries = KeyShared<kHead>::kQueries;
  extern __shared__ __align__(16) unsigned char memory[];
  KeyShared<kHead>& shared = *reinterpret_cast<KeyShared<kHead>*>(memory);
  const int batch = blockIdx.x / call.kv_heads, kv_head = blockIdx.x % call.kv_heads,
            size = call.head_size;
  const int warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32, first = blockIdx.y * kRows;
  const size_t stride = call.width(), line = static_cast<size_t>(batch) * call.time * stride;
  const size_t key_at = line + (call.heads + kv_head) * size,
               value_at = key_at + call.kv_heads * size;
  const size_t output_stride = static_cast<size_t>(call.heads) * size;

  shared.key.template fetch<kThreads>(qkv + key_at, stride, first, call.time, size);
  shared.value.template fetch<kThreads>(qkv + value_at, stride, first, call.time, size);
  float dk[kHead / 8][4] = {}, dv[kHead / 8][4] = {};
  const float to_base_2 = call.scale * kLog2E;
  // Queries from `end` on see none of the keys. Queries before `whole` see every key that is not
  // behind them.
  int end = call.time, whole = call.time;
  if constexpr (kFirstKey) {
    end = end_of_queries(call, batch, first, min(first + kRows, call.time) - 1);
    whole = end_of_queries(call, batch, first, first);
  }
  for (int head = kv_head * call.group(); head < (kv_head + 1) * call.group(); ++head) {
    const bfloat16* query = qkv + line + head * size;
    const bfloat16* d_output =
        d_o + static_cast<size_t>(batch) * call.time * output_stride + head * size;
    const size_t row = (static_cast<size_t>(batch) * call.heads + head) * call.padded_time();
    for (int start = first; start < end; start += kQueries) {
      shared.query.template fetch<kThreads>(query, stride, start, call.time, size);
      copy_commit();
      shared.d_output.template fetch<kThreads>(d_output, output_stride, start, call.time, size);
      copy_commit();
      copy_wait<1>();
      __syncthreads();
      float s[kQueries / 8][4] = {}, d_p[kQueries / 8][4] = {};
      multiply_rows<kQueries, kHead>(s, shared.key, warp_row, shared.query);
      copy_wait<0>();
      __syncthreads();
      multiply_rows<kQueries, kHead>(d_p, shared.value, warp_row, shared.d_output);
      const int diagonal = first + warp_row + lane / 4 - start - lane % 4 * 2;
      if (kFirstKey && start + kQueries > whole) {
#pragma unroll
        for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int from = first_key(call, batch, start + 8 * n + lane % 4 * 2 + c) - first -
                             warp_row - lane / 4;
            if (from > 0) s[n][c] = -INFINITY;
            if (from > 8) s[n][2 + c] = -INFINITY;
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
        const float2 lse =
            *reinterpret_cast<const float2*>(statistics.lse + row + start + 8 * n + lane % 4 * 2);
        const float2 row_sum = *reinterpret_cast<const float2*>(statistics.row_sum + row + start +
                                                                8 * n + lane % 4 * 2);
        if (lse.x == -INFINITY) {  // large scores; the branch is uniform in a warp
          const size_t line = static_cast<size_t>(batch) * call.heads + head;
          const int query = start + 8 * n + lane % 4 * 2;
          const float2 exact[2] = {exact_row(statistics, call, line, query),
                                   exact_row(statistics, call, line, query + 1)};
#pragma unroll
          for (int i = 0; i < 4; ++i)
            s[n][i] = fmaf(s[n][i] - exact[i % 2].x, to_base_2, -exact[i % 2].y);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) s[n][i] = fmaf(s[n][i], to_base_2, i % 2 ? -lse.y : -lse.x);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float p = exp2_approximate(s[n][i]);
          s[n][i] = 8 * n + i % 2 < diagonal + i / 2 * 8 ? 0.0f : p;
          d_p[n][i] = s[n][i] * (d_p[n][i] - (i % 2 ? row_sum.y : row_sum.x));
        }
      }
      multiply_columns<kQueries, kHead>(dv, s, shared.d_output);
      multiply_columns<kQueries, kHead>(dk, d_p, shared.query);
      __syncthreads();
    }
  }
  const float one[2] = {1, 1}, factor[2] = {call.scale, call.scale};
  write_rows<kHead>(dk, factor, dqkv + key_at, stride, first + warp_row, call.time, size);
  write_rows<kHead>(dv, one, dqkv + value_at, stride, first + warp_row, call.time, size);
}

template <int kHead, bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
            AttentionStatistics statistics, bfloat16* dqkv) {
  const int tiles = (call.time + kRows - 1) / kRows;
  const auto queries = attention_query_gradient_mma_kernel<kHead, kFirstKey>;
  const int query_bytes = sizeof(QueryShared<kHead>);
  LF_CUDA_CHECK(
      cudaFuncSetAttribute(queries, cudaFuncAttributeMaxDynamicSharedMemorySize, query_bytes));
  queries<<<dim3(call.batch * call.heads, tiles), kThreads, query_bytes, call.stream>>>(
      d_o, qkv, statistics, dqkv, call);
  LF_CUDA_CHECK(cudaGetLastError());
  const auto keys = attention_key_gradient_mma_kernel<kHead, kFirstKey>;
  const int key_bytes = sizeof(KeyShared<kHead>);
  LF_CUDA_CHECK(cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, key_bytes));
  keys<<<dim3(call.batch * call.kv_heads, tiles), kThreads, key_bytes, call.stream>>>(
      d_o, qkv, statistics, dqkv, call);
  LF_CUDA_CHECK(cudaGetLastError());
}

template <bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
            AttentionStatistics statistics, bfloat16* dqkv) {
  switch ((call.head_size + 31) / 32) {
    case 1: return launch<32, kFirstKey>(call, d_o, qkv, statistics, dqkv);
    case 2: return launch<64, kFirstKey>(call, d_o, qkv, statistics, dqkv);
    case 3: return launch<96, kFirstKey>(call, d_o, qkv, statistics, dqkv);
    case 4: return launch<128, kFirstKey>(call, d_o, qkv, statistics, dqkv);
  }
}

}  // namespace

void attention_backward_mma(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
                            AttentionStatistics statistics, bfloat16* dqkv) {
  call.first_key ? launch<true>(call, d_o, qkv, statistics, dqkv)
                 : launch<false>(call, d_o, qkv, statistics, dqkv);
}

}  // namespace llamaforge::cuda

// The kernels of causal attention that attention.cu chooses from. They take plain pointers and know
// neither the tensors nor the streams of the core.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/runtime/fault.h"
#include "runtime/dtype.h"

namespace llamaforge::cuda {

// A query tile of the backward pass never crosses a block of this many rows.
constexpr int kStatisticsRows = 128;

struct AttentionCall {
  int batch, time, heads, kv_heads, head_size;
  float scale;
  int processors;  // multiprocessors of the device
  cudaStream_t stream;
  // (batch, time): the first key that each query sees; null: every query sees the keys from 0.
  // First keys never fall along time; other values give wrong sums, but no access outside of the
  // tensors. Over a cache, first keys count the cache's rows.
  const int32_t* first_key = nullptr;

  __host__ __device__ int group() const { return heads / kv_heads; }
  // Width of a token's row of qkv.
  __host__ __device__ int width() const { return (heads + 2 * kv_heads) * head_size; }
  // The statistics of the backward pass have padded rows, so that 16-byte copies of them are
  // aligned.
  __host__ __device__ int padded_time() const {
    return (time + kStatisticsRows - 1) / kStatisticsRows * kStatisticsRows;
  }
  size_t statistics() const { return static_cast<size_t>(batch) * heads * padded_time(); }
};

constexpr float kLog2E = 1.44269504088896340736f;

// A score is large if its product with the scale, in base 2, exceeds this bound. Up to the bound a
// float keeps 10 binary digits after the point, so p = exp2(fma(s, to_base_2, -lse)), one
// instruction before the exponential, is exact enough for bf16. Beyond the bound, kernels take the
// longer p = exp2(fma(s - r, to_base_2, -log_sum)), because the rounded products of s and r with
// the scale would differ by whole units.
constexpr float kLargeScore = 8192.0f;

// Per-query statistics: the results of the forward pass that the backward pass needs.
struct AttentionStatistics {
  // (B, H, padded time): r · to_base_2 + log_sum. Rows beyond the end hold +inf, which gives
  // probability 0. A block of kStatisticsRows that contains a large score holds -inf throughout;
  // exact_row() then gives the values to use.
  float* lse;
  float* row_sum;  // (B, H, padded time): D = rowsum(dO ∘ o); 0 beyond the end
  // Written by attention_forward, (2, B, H, time): r, a value near the largest q·k, and
  // log(sum(exp(scale · (q·k - r)))).
  const float* forward;
  int* next;  // the next piece of work that no block has taken (see WorkQueue)

  static size_t bytes(const AttentionCall& call) {
    return (2 * call.statistics() + 1) * sizeof(float);
  }
  AttentionStatistics(const AttentionCall& call, const float* forward, float* memory)
      : lse(memory),
        row_sum(memory + call.statistics()),
        forward(forward),
        next(reinterpret_cast<int*>(memory + 2 * call.statistics())) {}
};

// Hopper (sm_90a): wgmma and TMA. Head sizes 64, 96 and 128; all pointers 16-byte aligned.
// `next` is one word of scratch.
bool hopper_takes(const AttentionCall& call);
void attention_forward_hopper(const AttentionCall& call, const bfloat16* qkv, bfloat16* o,
                              float* statistics, int* next);
void attention_backward_hopper(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
                               AttentionStatistics statistics, bfloat16* dqkv);

// sm_80 and up: mma.sync. Head sizes that are multiples of 8, up to 128; all pointers 16-byte
// aligned.
bool mma_takes(const AttentionCall& call);
void attention_forward_mma(const AttentionCall& call, const bfloat16* qkv, bfloat16* o,
                           float* statistics);
void attention_backward_mma(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
                            AttentionStatistics statistics, bfloat16* dqkv);

// Any head size, bf16 or f32, in f32 arithmetic.
template <class T>
void attention_forward_plain(const AttentionCall& call, const T* qkv, T* o, float* statistics);
template <class T>
void attention_backward_plain(const AttentionCall& call, const T* d_o, const T* qkv,
                              AttentionStatistics statistics, T* dqkv);

// Attention for generation: appends the keys and values of qkv to cache (B,2,KV,capacity,hd), then
// attends over it. `scratch` holds attention_cached_scratch bytes.
template <class T>
void attention_append(const AttentionCall& call, const T* qkv, T* cache, int position,
                      int capacity);
size_t attention_cached_scratch(const AttentionCall& call, int position);
template <class T>
void attention_cached(const AttentionCall& call, const T* qkv, T* cache, T* o, float* scratch,
                      int position, int capacity);

// The places of tokens in an engine's pages: table (count, table_width), sequences and positions
// (batch, time), on the device. Without sequences, token n is the only one of sequence n. angles
// (angle_rows, head_size / 2, 2): a rope_table, or null.
struct PagedPlaces {
  const int32_t *table, *sequences, *positions;
  int count, table_width, pages, page;
  const float* angles;
  int angle_rows;
  FaultSite wrong_sequence, wrong_position, wrong_page, wrong_angle;
};

class CudaStream;

// The kernels for bf16 heads of 64 and 128 (paged_mma.cu), which turn q and k by the angles.
// `scratch` holds paged_mma_scratch bytes.
bool paged_mma_takes(const AttentionCall& call, const PagedPlaces& places, const bfloat16* qkv,
                     const bfloat16* pages);
size_t paged_mma_scratch(const AttentionCall& call, const PagedPlaces& places);
void attention_paged_mma(CudaStream& cuda, const AttentionCall& call, const bfloat16* qkv,
                         bfloat16* pages, bfloat16* o, float* scratch, const PagedPlaces& places);

// Appends the keys and values of qkv, which have turned, to pages (P,2,KV,page,hd), whose page is a
// multiple of kPageMultiple, and attends over them. `scratch` holds attention_paged_scratch bytes.
constexpr int kPageMultiple = 32;
size_t attention_paged_scratch(const AttentionCall& call, int table_width, int page);
template <class T>
void attention_paged(const AttentionCall& call, const T* qkv, T* pages, T* o, float* scratch,
                     const PagedPlaces& places);

// Fills the statistics from o, dO and the forward pass's statistics.
template <class T>
void attention_statistics(const AttentionCall& call, const T* d_o, const T* o,
                          AttentionStatistics statistics);

#ifdef __CUDACC__
// Returns r of a query and its log_sum in base 2. Queries beyond the end get values that give
// probability 0. line: batch · heads + head.
__device__ __forceinline__ float2 exact_row(const AttentionStatistics& statistics,
                                            const AttentionCall& call, size_t line, int query) {
  if (query >= call.time) return {INFINITY, 0.0f};
  const size_t at = line * call.time + query,
               rows = static_cast<size_t>(call.batch) * call.heads * call.time;
  return {statistics.forward[at], statistics.forward[rows + at] * kLog2E};
}

// Writes r and the natural logarithm of a query's sum for the backward pass.
__device__ __forceinline__ void write_row(float* statistics, const AttentionCall& call, size_t line,
                                          int query, float r, float sum) {
  const size_t at = line * call.time + query,
               rows = static_cast<size_t>(call.batch) * call.heads * call.time;
  statistics[at] = r;
  statistics[rows + at] = logf(sum);
}
#endif

}  // namespace llamaforge::cuda

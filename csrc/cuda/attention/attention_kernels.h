// The kernels of causal attention behind attention.cu, on plain pointers: nothing here knows tensors or streams of the
// core.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "runtime/dtype.h"

namespace llamaforge::cuda {

struct AttentionCall {
  int batch, time, heads, kv_heads, head_size;
  float scale;
  int processors;  // of the device
  cudaStream_t stream;
  // (batch, time): the first key that each query sees, where documents are masked; null: all from 0. Never falling
  // along time; other values give wrong sums but no access outside of the tensors.
  const int32_t* starts = nullptr;

  __host__ __device__ int group() const { return heads / kv_heads; }
  __host__ __device__ int width() const { return (heads + 2 * kv_heads) * head_size; }  // of a token's row of qkv
  // Rows of the backward pass's statistics are padded, so that 16-byte copies of them are aligned.
  __host__ __device__ int padded_time() const { return (time + 127) / 128 * 128; }
  size_t statistics() const { return static_cast<size_t>(batch) * heads * padded_time(); }
};

constexpr float kLog2E = 1.44269504088896340736f;

// Where a row of the backward pass's statistics holds what it needs: p = exp2(s · scale · log2(e) - lse), D = rowsum(dO
// ∘ o).
struct AttentionStatistics {
  float* lse;      // (B, H, padded time), base 2; +inf beyond the end: probability 0
  float* row_sum;  // (B, H, padded time); 0 beyond the end
  int* next;       // the next piece of work that no block has taken: see WorkQueue

  static size_t bytes(const AttentionCall& call) { return (2 * call.statistics() + 1) * sizeof(float); }
  AttentionStatistics(const AttentionCall& call, float* memory)
      : lse(memory),
        row_sum(memory + call.statistics()),
        next(reinterpret_cast<int*>(memory + 2 * call.statistics())) {}
};

// Hopper (sm_90a): wgmma and TMA. Head sizes 64, 96 and 128; all pointers 16-byte aligned.
// `next` is one word of scratch.
bool hopper_takes(const AttentionCall& call);
void attention_forward_hopper(const AttentionCall& call, const bfloat16* qkv, bfloat16* o, float* lse, int* next);
void attention_backward_hopper(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
                               AttentionStatistics statistics, bfloat16* dqkv);

// sm_80 and up: mma.sync. Head sizes that are multiples of 8, up to 128; all pointers 16-byte aligned.
bool mma_takes(const AttentionCall& call);
void attention_forward_mma(const AttentionCall& call, const bfloat16* qkv, bfloat16* o, float* lse);
void attention_backward_mma(const AttentionCall& call, const bfloat16* d_o, const bfloat16* qkv,
                            AttentionStatistics statistics, bfloat16* dqkv);

// Any head size, bf16 or f32, in f32 arithmetic.
template <class T>
void attention_forward_plain(const AttentionCall& call, const T* qkv, T* o, float* lse);
template <class T>
void attention_backward_plain(const AttentionCall& call, const T* d_o, const T* qkv, AttentionStatistics statistics,
                              T* dqkv);

// Generation: appends the keys and values of qkv to cache (B,2,KV,capacity,hd), then attends over it. `scratch` holds
// attention_cached_scratch bytes.
template <class T>
void attention_append(const AttentionCall& call, const T* qkv, T* cache, int position, int capacity);
size_t attention_cached_scratch(const AttentionCall& call, int position);
template <class T>
void attention_cached(const AttentionCall& call, const T* qkv, const T* cache, T* o, float* scratch, int position,
                      int capacity);

// Fills the statistics from o, dO and the forward pass's lse (natural logarithm, (B, H, T)).
template <class T>
void attention_statistics(const AttentionCall& call, const T* d_o, const T* o, const float* lse,
                          AttentionStatistics statistics);

}  // namespace llamaforge::cuda

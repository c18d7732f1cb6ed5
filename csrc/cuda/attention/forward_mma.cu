// Causal attention forward with mma.sync, for every chip from sm_80 (FlashAttention-2, Dao 2023,
// arXiv 2307.08691). A block of four warps owns 64 queries, 16 for each warp, and walks the key
// tiles up to its diagonal; the next tile is copied while the current one is computed. Head sizes
// are padded with zero columns to the next of 32, 64, 96, 128. A query is computed by one warp in
// one order, so results are deterministic.
#include "cuda/attention/first_key.cuh"
#include "cuda/attention/mma.cuh"
#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {
namespace {

using namespace mma;

constexpr int kThreads = 128, kQueries = 64, kKeys = 64;

template <int kHead>
struct Shared {
  Tile<kQueries, kHead> query;
  Tile<kKeys, kHead> key[2], value[2];
};

template <int kHead, bool kFirstKey>
__global__ void __launch_bounds__(kThreads)
    attention_forward_mma_kernel(const bfloat16* __restrict__ qkv, bfloat16* __restrict__ o,
                                 float* __restrict__ statistics, const AttentionCall call) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<kHead>& shared = *reinterpret_cast<Shared<kHead>*>(memory);
  const int query_tile = gridDim.y - 1 - blockIdx.y;  // the longest walks first
  const int batch = blockIdx.x / call.heads, head = blockIdx.x % call.heads, size = call.head_size;
  const int warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32,
            first = query_tile * kQueries;
  const size_t stride = call.width();
  const bfloat16* query = qkv + static_cast<size_t>(batch) * call.time * stride + head * size;
  const bfloat16* key = query + (call.heads + head / call.group() - head) * size;
  const bfloat16* value = key + call.kv_heads * size;
  const int tiles = (min(first + kQueries, call.time) + kKeys - 1) / kKeys;
  const int first_tile = kFirstKey ? first_key(call, batch, first) / kKeys : 0;

  shared.query.template fetch<kThreads>(query, stride, first, call.time, size);
  shared.key[first_tile % 2].template fetch<kThreads>(key, stride, first_tile * kKeys, call.time,
                                                      size);
  shared.value[first_tile % 2].template fetch<kThreads>(value, stride, first_tile * kKeys,
                                                        call.time, size);
  copy_commit();

  float out[kHead / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const float to_base_2 = call.scale * kLog2E;
  [[maybe_unused]] int from[2];  // the first keys of this thread's rows
  if constexpr (kFirstKey) {
    for (int h = 0; h < 2; ++h)
      from[h] = first_key(call, batch, first + warp_row + lane / 4 + 8 * h);
  }
  for (int tile = first_tile; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      shared.key[(tile + 1) % 2].template fetch<kThreads>(key, stride, (tile + 1) * kKeys,
                                                          call.time, size);
      shared.value[(tile + 1) % 2].template fetch<kThreads>(value, stride, (tile + 1) * kKeys,
                                                            call.time, size);
    }
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    float s[kKeys / 8][4] = {};
    multiply_rows<kKeys, kHead>(s, shared.query, warp_row, shared.key[tile % 2]);
    if (tile == tiles - 1) {
      const int diagonal = first + warp_row + lane / 4 - tile * kKeys - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (8 * n + i % 2 > diagonal + i / 2 * 8) s[n][i] = -INFINITY;
        }
      }
    }
    if constexpr (kFirstKey) {
      const int before = tile * kKeys + lane % 4 * 2;
      if (from[1] > tile * kKeys) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (8 * n + i % 2 < from[i / 2] - before) s[n][i] = -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float highest = maximum[h];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        highest = fmaxf(highest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      // A row has no maximum if it has seen no key yet (its first key comes later), or only scores
      // of -inf.
      const float reference = highest == -INFINITY ? 0.0f : highest;
      const float factor = exp2_approximate((maximum[h] - reference) * to_base_2);
      maximum[h] = highest;
      sum[h] *= factor;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        out[n][2 * h] *= factor;
        out[n][2 * h + 1] *= factor;
      }
      const auto exponentials = [&](auto exponent) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = s[n][2 * h + c];
            x = exp2_approximate(exponent(x));
            sum[h] += x;
          }
        }
      };
      if (__any_sync(~0u, fabsf(reference) * to_base_2 > kLargeScore)) {
        exponentials([&](float x) { return (x - reference) * to_base_2; });
      } else {
        exponentials([&](float x) { return fmaf(x, to_base_2, -reference * to_base_2); });
      }
    }
    multiply_columns<kKeys, kHead>(out, s, shared.value[tile % 2]);
    __syncthreads();
  }

  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    inverse[h] = 1.0f / sum[h];
    const int row = first + warp_row + lane / 4 + 8 * h;
    if (lane % 4 == 0 && row < call.time) {
      write_row(statistics, call, blockIdx.x, row, maximum[h], sum[h]);
    }
  }
  write_rows<kHead>(out, inverse,
                    o + (static_cast<size_t>(batch) * call.time * call.heads + head) * size,
                    static_cast<size_t>(call.heads) * size, first + warp_row, call.time, size);
}

template <int kHead, bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* qkv, bfloat16* o, float* statistics) {
  const auto kernel = attention_forward_mma_kernel<kHead, kFirstKey>;
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     sizeof(Shared<kHead>)));
  const dim3 grid(call.batch * call.heads, (call.time + kQueries - 1) / kQueries);
  kernel<<<grid, kThreads, sizeof(Shared<kHead>), call.stream>>>(qkv, o, statistics, call);
  LF_CUDA_CHECK(cudaGetLastError());
}

template <bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* qkv, bfloat16* o, float* statistics) {
  switch ((call.head_size + 31) / 32) {
    case 1: return launch<32, kFirstKey>(call, qkv, o, statistics);
    case 2: return launch<64, kFirstKey>(call, qkv, o, statistics);
    case 3: return launch<96, kFirstKey>(call, qkv, o, statistics);
    case 4: return launch<128, kFirstKey>(call, qkv, o, statistics);
  }
}

}  // namespace

bool mma_takes(const AttentionCall& call) {
  return call.head_size % 8 == 0 && call.head_size <= 128;
}

void attention_forward_mma(const AttentionCall& call, const bfloat16* qkv, bfloat16* o,
                           float* statistics) {
  call.first_key ? launch<true>(call, qkv, o, statistics) : launch<false>(call, qkv, o, statistics);
}

}  // namespace llamaforge::cuda

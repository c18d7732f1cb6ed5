// Causal attention forward for Hopper: FlashAttention-2's tiles (Dao 2023, arXiv 2307.08691) in the
// warp-specialised form of FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608):
//   o = softmax(scale · q kᵀ) v
//
// One persistent block per multiprocessor. A producer warp copies Q, K and V tiles by TMA into
// rings of shared memory; consumer warpgroups of 64 queries each multiply by wgmma. Inside a
// warpgroup the softmax of a tile runs while the tensor cores do  O += P V  of the tile before.
// Warpgroups take turns to issue, so that the softmaxes of one run under the products of the
// others. At head size 64 the exponentials (16 per clock) limit as much as the products do: each
// takes 512 clocks per 64 × 128 scores.
//
// Deterministic: a query tile is computed by one warpgroup in one order.
#include <algorithm>

#include "cuda/attention/first_key.cuh"
#include "cuda/attention/hopper.cuh"
#include "cuda/attention/tensor_map.h"
#include "cuda/attention/work_queue.cuh"

namespace llamaforge::cuda {
namespace {

using namespace hopper;

template <int kHead>
struct Tiles {
  static constexpr int kConsumers = kHead == 64 ? 3 : 2;  // warpgroups of 64 queries
  static constexpr int kQueries = 64 * kConsumers, kKeys = 128;
  static constexpr int kSlabs = (kHead + 63) / 64;
  static constexpr int kQueryStages = kHead == 64 ? 2 : 1, kKeyStages = 2;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  [[maybe_unused]] static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
  [[maybe_unused]] static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
};

template <int kHead>
struct alignas(1024) Shared {
  using T = Tiles<kHead>;
  bfloat16 query[T::kQueryStages][T::kConsumers][T::kSlabs][64 * 64];
  bfloat16 key[T::kKeyStages][T::kSlabs][T::kKeys * 64];
  bfloat16 value[T::kKeyStages][T::kSlabs][T::kKeys * 64];
  int work[T::kQueryStages], first_tile[T::kQueryStages];  // first_tile is set with first keys only
  Barrier query_full[T::kQueryStages], query_empty[T::kQueryStages];
  Barrier key_full[T::kKeyStages], key_empty[T::kKeyStages], value_full[T::kKeyStages],
      value_empty[T::kKeyStages];
};

// A thread has two rows in the accumulators, 8 apart.
struct Softmax {
  float maximum[2], sum[2];  // maximum of the raw scores; the sum is this thread's part
  float factor[2];           // rescales the output so far, after the last tile
  bool rescale;              // whether the output must be multiplied by `factor`; uniform in a warp
};

// Turns scores into probabilities relative to a reference close to the running maximum. The
// reference moves only when the maximum outgrows it by 2^8: any reference gives the same quotient,
// and moving it means a pass over the output.
template <bool kFirst>
__device__ __forceinline__ void softmax_tile(float (&s)[64], Softmax& state, float to_base_2) {
  float highest[2] = {s[0], s[2]};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    highest[0] = fmaxf(highest[0], fmaxf(s[4 * i], s[4 * i + 1]));
    highest[1] = fmaxf(highest[1], fmaxf(s[4 * i + 2], s[4 * i + 3]));
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    highest[h] = fmaxf(highest[h], __shfl_xor_sync(~0u, highest[h], 1));
    highest[h] = fmaxf(highest[h], __shfl_xor_sync(~0u, highest[h], 2));
  }
  if (kFirst) {
    state.maximum[0] = highest[0];
    state.maximum[1] = highest[1];
    state.sum[0] = state.sum[1] = 0;
  } else {
    const float slack = 8.0f;
    const bool outgrown = (highest[0] - state.maximum[0]) * to_base_2 > slack ||
                          (highest[1] - state.maximum[1]) * to_base_2 > slack;
    state.rescale = __any_sync(~0u, outgrown);
    if (state.rescale) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float now = fmaxf(highest[h], state.maximum[h]);
        state.factor[h] = exp2_approximate((state.maximum[h] - now) * to_base_2);
        state.sum[h] *= state.factor[h];
        state.maximum[h] = now;
      }
    }
  }
  if (__any_sync(
          ~0u, fmaxf(fabsf(state.maximum[0]), fabsf(state.maximum[1])) * to_base_2 > kLargeScore)) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      s[i] = exp2_approximate((s[i] - state.maximum[i / 2 % 2]) * to_base_2);
      state.sum[i / 2 % 2] += s[i];
    }
    return;
  }
  const float reference[2] = {state.maximum[0] * to_base_2, state.maximum[1] * to_base_2};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& left = s[4 * i + 2 * h];
      float& right = s[4 * i + 2 * h + 1];
      left = exp2_approximate(fmaf(left, to_base_2, -reference[h]));
      right = exp2_approximate(fmaf(right, to_base_2, -reference[h]));
      state.sum[h] += left + right;
    }
  }
}

template <int kHead, bool kTurns, bool kFirstKey>
__global__ void __launch_bounds__(Tiles<kHead>::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ CUtensorMap query_map,
                             const __grid_constant__ CUtensorMap key_map, bfloat16* __restrict__ o,
                             float* __restrict__ statistics, const WorkQueue queue,
                             const AttentionCall call) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = Tiles<kHead>;
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared<kHead>& shared = *reinterpret_cast<Shared<kHead>*>(memory);
  // The shuffle makes it uniform for the compiler.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  auto key_tiles = [&](int end_of_queries) {
    return (min(end_of_queries, call.time) + T::kKeys - 1) / T::kKeys;
  };

  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kQueryStages; ++i) {
      barrier_init(&shared.query_full[i], 1);
      barrier_init(&shared.query_empty[i], 4 * T::kConsumers * kReleaseArrivals);
    }
    for (int i = 0; i < T::kKeyStages; ++i) {
      barrier_init(&shared.key_full[i], 1);
      barrier_init(&shared.value_full[i], 1);
      barrier_init(&shared.key_empty[i], 4 * T::kConsumers);
      barrier_init(&shared.value_empty[i], 4 * T::kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (warpgroup == 0) {  // the producer is one thread
    give_registers<T::kProducerRegisters>();
    if (threadIdx.x != 0) return;
    tma_prefetch_map(&query_map);
    tma_prefetch_map(&key_map);
    Ring<T::kQueryStages> queries;
    Ring<T::kKeyStages> keys;
    constexpr uint32_t kTileBytes = T::kSlabs * T::kKeys * 64 * sizeof(bfloat16);
    for (int index = blockIdx.x;; index = gridDim.x + atomicAdd(queue.next, 1)) {
      barrier_wait(&shared.query_empty[queries.stage], queries.parity ^ 1);
      shared.work[queries.stage] = index;
      if (index >= queue.works) {  // tells the consumers that the work is done
        barrier_arrive(&shared.query_full[queries.stage]);
        break;
      }
      const Work work = work_at(index, queue, call);
      const int kv_head = work.head / call.group();
      const int key_column = (call.heads + kv_head) * kHead,
                value_column = key_column + call.kv_heads * kHead;
      int first_tile = 0;
      if constexpr (kFirstKey) {
        first_tile = first_key(call, work.batch, work.query_tile * T::kQueries) / T::kKeys;
        shared.first_tile[queries.stage] = first_tile;
      }
      barrier_expect_bytes(&shared.query_full[queries.stage],
                           T::kConsumers * T::kSlabs * 64 * 64 * sizeof(bfloat16));
      for (int i = 0; i < T::kConsumers; ++i) {
        for (int slab = 0; slab < T::kSlabs; ++slab) {
          tma_load(&query_map, shared.query[queries.stage][i][slab],
                   &shared.query_full[queries.stage], work.head * kHead + slab * 64,
                   work.query_tile * T::kQueries + i * 64, work.batch);
        }
      }
      queries.advance();
      for (int tile = key_tiles((work.query_tile + 1) * T::kQueries) - 1; tile >= first_tile;
           --tile) {
        barrier_wait(&shared.key_empty[keys.stage], keys.parity ^ 1);
        barrier_expect_bytes(&shared.key_full[keys.stage], kTileBytes);
        for (int slab = 0; slab < T::kSlabs; ++slab) {
          tma_load(&key_map, shared.key[keys.stage][slab], &shared.key_full[keys.stage],
                   key_column + slab * 64, tile * T::kKeys, work.batch);
        }
        barrier_wait(&shared.value_empty[keys.stage], keys.parity ^ 1);
        barrier_expect_bytes(&shared.value_full[keys.stage], kTileBytes);
        for (int slab = 0; slab < T::kSlabs; ++slab) {
          tma_load(&key_map, shared.value[keys.stage][slab], &shared.value_full[keys.stage],
                   value_column + slab * 64, tile * T::kKeys, work.batch);
        }
        keys.advance();
      }
    }
  } else {
    take_registers<T::kConsumerRegisters>();
    const int consumer = warpgroup - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const float to_base_2 = call.scale * kLog2E;
    Ring<T::kQueryStages> queries;
    Ring<T::kKeyStages> keys;

    // Warpgroups take turns: each issues its products once the one before it has issued its own.
    constexpr int kPair = 256;
    auto take_turn = [&] {
      if (kTurns) named_sync(1 + consumer, kPair);
    };
    auto pass_turn = [&] {
      if (kTurns) named_arrive(1 + (consumer + 1) % T::kConsumers, kPair);
    };
    if (kTurns && consumer == T::kConsumers - 1) named_arrive(1, kPair);
    auto release = [&](Barrier& barrier) {
      if (lane == 0) barrier_arrive(&barrier);
    };

    auto multiply_keys = [&](float(&s)[64], int query_stage, int key_stage) {
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        Wgmma<128>::multiply<0>(
            s,
            slab_descriptor(shared.query[query_stage][consumer][step / 4]) +
                step % 4 * kNext16Columns,
            slab_descriptor(shared.key[key_stage][step / 4]) + step % 4 * kNext16Columns, step > 0);
      }
      wgmma_commit();
    };
    auto multiply_values = [&](float(&out)[kHead / 2], const uint32_t(&p)[32], int stage,
                               bool add) {
#pragma unroll
      for (int step = 0; step < T::kKeys / 16; ++step) {
        Wgmma<kHead>::template multiply<1>(
            out, p + 4 * step,
            slab_descriptor(shared.value[stage][0], T::kKeys * 128) + step * kNext16Rows,
            step > 0 || add);
      }
      wgmma_commit();
    };

    while (true) {
      barrier_wait(&shared.query_full[queries.stage], queries.parity);
      const int index = shared.work[queries.stage];
      if (index >= queue.works) break;
      const Work work = work_at(index, queue, call);
      const int first_query = work.query_tile * T::kQueries + consumer * 64;
      const int tiles = key_tiles((work.query_tile + 1) * T::kQueries);
      const int first_tile = kFirstKey ? shared.first_tile[queries.stage] : 0;
      // The end of the key tiles that these queries see.
      const int own_tiles = first_query < call.time ? key_tiles(first_query + 64) : first_tile;
      // Masks the keys before a query's first key. Every query has seen a key by then, because the
      // walk began at the query's own key.
      auto mask_unseen = [&](float(&s)[64], int tile) {
        int from[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          from[h] = first_key(call, work.batch, first_query + thread / 32 * 16 + lane / 4 + 8 * h) -
                    tile * T::kKeys;
        }
        if (from[1] <= 0) return;
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          if (i / 4 * 8 + i % 2 < from[i / 2 % 2] - lane % 4 * 2) s[i] = -INFINITY;
        }
      };
      float out[kHead / 2];
      uint32_t p[32];
      Softmax softmax;

      for (int tile = tiles; tile > own_tiles; --tile) {  // beyond the diagonal
        barrier_wait(&shared.key_full[keys.stage], keys.parity);
        release(shared.key_empty[keys.stage]);
        barrier_wait(&shared.value_full[keys.stage], keys.parity);
        release(shared.value_empty[keys.stage]);
        take_turn();
        pass_turn();
        keys.advance();
      }
      if (own_tiles == first_tile) {
        release_stage(&shared.query_empty[queries.stage]);
        queries.advance();
        continue;
      }

      int stage_of_p;  // the stage that holds the values of p's tile
      uint32_t parity_of_p;
      {
        float s[64];
        barrier_wait(&shared.key_full[keys.stage], keys.parity);
        take_turn();
        wgmma_fence();
        multiply_keys(s, queries.stage, keys.stage);
        pass_turn();
        wgmma_wait<0>();
        pin(s);
        release(shared.key_empty[keys.stage]);
        const int row =
            first_query + thread / 32 * 16 + lane / 4 - (own_tiles - 1) * T::kKeys - lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          const int column = i / 4 * 8 + i % 2, below = i / 2 % 2 * 8;
          if (column > row + below) s[i] = -INFINITY;
        }
        if constexpr (kFirstKey) mask_unseen(s, own_tiles - 1);
        softmax_tile<true>(s, softmax, to_base_2);
        as_operand(s, p);
        stage_of_p = keys.stage;
        parity_of_p = keys.parity;
        keys.advance();
      }
      for (int tile = own_tiles - 1; tile > first_tile; --tile) {
        float s[64];
        barrier_wait(&shared.key_full[keys.stage], keys.parity);
        take_turn();
        wgmma_fence();
        multiply_keys(s, queries.stage, keys.stage);
        barrier_wait(&shared.value_full[stage_of_p], parity_of_p);
        wgmma_fence();
        multiply_values(out, p, stage_of_p, tile < own_tiles - 1);
        pass_turn();
        wgmma_wait<1>();
        pin(s);
        release(shared.key_empty[keys.stage]);
        if constexpr (kFirstKey) mask_unseen(s, tile - 1);
        softmax_tile<false>(s, softmax, to_base_2);
        wgmma_wait<0>();
        pin(out);
        release(shared.value_empty[stage_of_p]);
        if (softmax.rescale) {
#pragma unroll
          for (int i = 0; i < kHead / 2; ++i) out[i] *= softmax.factor[i / 2 % 2];
        }
        as_operand(s, p);
        stage_of_p = keys.stage;
        parity_of_p = keys.parity;
        keys.advance();
      }
      release_stage(&shared.query_empty[queries.stage]);
      queries.advance();
      barrier_wait(&shared.value_full[stage_of_p], parity_of_p);
      wgmma_fence();
      multiply_values(out, p, stage_of_p, own_tiles - 1 > first_tile);

      float total[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        total[h] = softmax.sum[h] + __shfl_xor_sync(~0u, softmax.sum[h], 1);
        total[h] += __shfl_xor_sync(~0u, total[h], 2);
      }
      wgmma_wait<0>();
      pin(out);
      release(shared.value_empty[stage_of_p]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_query + thread / 32 * 16 + lane / 4 + 8 * h;
        if (row < call.time) {
          const float inverse = 1.0f / total[h];
          bfloat16* to = o +
                         (static_cast<size_t>(work.batch) * call.time + row) * call.heads * kHead +
                         work.head * kHead + lane % 4 * 2;
#pragma unroll
          for (int i = 0; i < kHead / 8; ++i) {
            *reinterpret_cast<uint32_t*>(to + 8 * i) =
                pack_bf16(out[4 * i + 2 * h] * inverse, out[4 * i + 2 * h + 1] * inverse);
          }
          if (lane % 4 == 0) {
            write_row(statistics, call, static_cast<size_t>(work.batch) * call.heads + work.head,
                      row, softmax.maximum[h], total[h]);
          }
        }
      }
    }
    // Takes the last turn that was passed, because nobody else takes it.
    if (kTurns && consumer == 0) named_sync(1, kPair);
  }
#endif
}

template <int kHead, bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* qkv, bfloat16* o, float* statistics,
            int* next) {
  using T = Tiles<kHead>;
  const auto kernel = attention_forward_kernel<kHead, kHead == 64, kFirstKey>;
  const int bytes = sizeof(Shared<kHead>);
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const CUtensorMap query_map = tensor_map(qkv, call.batch, call.time, call.width(), 64);
  const CUtensorMap key_map = tensor_map(qkv, call.batch, call.time, call.width(), T::kKeys);
  const WorkQueue queue(call, T::kQueries, next);
  LF_CUDA_CHECK(cudaMemsetAsync(next, 0, sizeof(int), call.stream));
  kernel<<<std::min(queue.works, call.processors), T::kThreads, bytes, call.stream>>>(
      query_map, key_map, o, statistics, queue, call);
  LF_CUDA_CHECK(cudaGetLastError());
}

template <bool kFirstKey>
void launch(const AttentionCall& call, const bfloat16* qkv, bfloat16* o, float* statistics,
            int* next) {
  switch (call.head_size) {
    case 64: return launch<64, kFirstKey>(call, qkv, o, statistics, next);
    case 96: return launch<96, kFirstKey>(call, qkv, o, statistics, next);
    case 128: return launch<128, kFirstKey>(call, qkv, o, statistics, next);
  }
}

}  // namespace

bool hopper_takes(const AttentionCall& call) {
  return call.head_size == 64 || call.head_size == 96 || call.head_size == 128;
}

void attention_forward_hopper(const AttentionCall& call, const bfloat16* qkv, bfloat16* o,
                              float* statistics, int* next) {
  call.first_key ? launch<true>(call, qkv, o, statistics, next)
                 : launch<false>(call, qkv, o, statistics, next);
}

}  // namespace llamaforge::cuda

// Gradient of the queries for Hopper:
//   p = exp2(s - lse),  dS = p ∘ (dO vᵀ - D),  dq = scale · dS k
//
// This gradient has a pass of its own, although the pass over keys could add into dq. Two products
// of five are done twice, but nothing is added through global memory (2.3 GB of f32 for 16 × 2048
// tokens and 32 heads), so the order of sums does not vary. Neither pass exchanges dS through
// shared memory: p and dS stay in the registers where the next product takes its operand.
//
// A warpgroup overlaps its products with its exponentials, also from one query tile to the next:
//   exp of key tile n       while  dQ += dS k of tile n - 1, dP = dO vᵀ of tile n
//   dS of key tile n        while  S = q kᵀ of tile n + 1
// A single loop body serves all of this, so that the compiler sees products in flight only inside
// an iteration; with products in flight around a loop, it waits after each of them. So the first
// iteration adds zeros to a sum that nobody reads, and the last computes one S too many.
#pragma once

#include "cuda/attention/first_key.cuh"
#include "cuda/attention/hopper.cuh"
#include "cuda/attention/work_queue.cuh"

namespace llamaforge::cuda {

template <int kHead>
struct QueryGradient {
  static constexpr int kConsumers = 2, kQueries = 64 * kConsumers, kKeys = kHead == 64 ? 128 : 64;
  static constexpr int kSlabs = (kHead + 63) / 64;
  static constexpr int kQueryStages = 2, kKeyStages = 3;
  static constexpr int kThreads = 128 * (kConsumers + 1);

  struct alignas(1024) Shared {
    bfloat16 query[kQueryStages][kConsumers][kSlabs][64 * 64];
    bfloat16 d_output[kQueryStages][kConsumers][kSlabs][64 * 64];
    bfloat16 key[kKeyStages][kSlabs][kKeys * 64];
    bfloat16 value[kKeyStages][kSlabs][kKeys * 64];
    int work[kQueryStages], first_tile[kQueryStages];  // first_tile is set with first keys only
    hopper::Barrier query_full[kQueryStages], query_empty[kQueryStages];
    hopper::Barrier key_full[kKeyStages], key_empty[kKeyStages], value_full[kKeyStages],
        value_empty[kKeyStages];
  };
};

template <int kHead, bool kFirstKey>
__global__ void __launch_bounds__(QueryGradient<kHead>::kThreads, 1)
    attention_query_gradient_kernel(const __grid_constant__ CUtensorMap query_map,
                                    const __grid_constant__ CUtensorMap d_output_map,
                                    const __grid_constant__ CUtensorMap key_map,
                                    const AttentionStatistics statistics,
                                    bfloat16* __restrict__ dqkv, const WorkQueue queue,
                                    const AttentionCall call) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using namespace hopper;
  using G = QueryGradient<kHead>;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<typename G::Shared*>(memory);
  // The shuffle makes it uniform for the compiler.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  auto key_tiles = [&](int end_of_queries) {
    return (min(end_of_queries, call.time) + G::kKeys - 1) / G::kKeys;
  };

  if (threadIdx.x == 0) {
    for (int i = 0; i < G::kQueryStages; ++i) {
      barrier_init(&shared.query_full[i], 1);
      barrier_init(&shared.query_empty[i], 4 * G::kConsumers * kReleaseArrivals);
    }
    for (int i = 0; i < G::kKeyStages; ++i) {
      barrier_init(&shared.key_full[i], 1);
      barrier_init(&shared.value_full[i], 1);
      barrier_init(&shared.key_empty[i], 4 * G::kConsumers);
      barrier_init(&shared.value_empty[i], 4 * G::kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (warpgroup == 0) {  // the producer is one thread
    give_registers<24>();
    if (threadIdx.x != 0) return;
    tma_prefetch_map(&query_map);
    tma_prefetch_map(&d_output_map);
    tma_prefetch_map(&key_map);
    Ring<G::kQueryStages> queries;
    Ring<G::kKeyStages> keys;
    constexpr uint32_t kTileBytes = G::kSlabs * G::kKeys * 64 * sizeof(bfloat16);
    for (int index = blockIdx.x;; index = gridDim.x + atomicAdd(queue.next, 1)) {
      Barrier* const query_full = &shared.query_full[queries.stage];
      barrier_wait(&shared.query_empty[queries.stage], queries.parity ^ 1);
      shared.work[queries.stage] = index;
      if (index >= queue.works) {  // tells the consumers that the work is done
        barrier_arrive(query_full);
        break;
      }
      const Work work = work_at(index, queue, call);
      const int key_column = (call.heads + work.head / call.group()) * kHead;
      const int value_column = key_column + call.kv_heads * kHead;
      int first_tile = 0;
      if constexpr (kFirstKey) {
        first_tile = first_key(call, work.batch, work.query_tile * G::kQueries) / G::kKeys;
        shared.first_tile[queries.stage] = first_tile;
      }
      barrier_expect_bytes(query_full, 2 * G::kConsumers * G::kSlabs * 64 * 64 * sizeof(bfloat16));
      for (int i = 0; i < G::kConsumers; ++i) {
        for (int slab = 0; slab < G::kSlabs; ++slab) {
          const int column = work.head * kHead + slab * 64,
                    time = work.query_tile * G::kQueries + i * 64;
          tma_load(&query_map, shared.query[queries.stage][i][slab], query_full, column, time,
                   work.batch);
          tma_load(&d_output_map, shared.d_output[queries.stage][i][slab], query_full, column, time,
                   work.batch);
        }
      }
      queries.advance();
      for (int tile = key_tiles((work.query_tile + 1) * G::kQueries) - 1; tile >= first_tile;
           --tile) {
        barrier_wait(&shared.key_empty[keys.stage], keys.parity ^ 1);
        barrier_expect_bytes(&shared.key_full[keys.stage], kTileBytes);
        for (int slab = 0; slab < G::kSlabs; ++slab) {
          tma_load(&key_map, shared.key[keys.stage][slab], &shared.key_full[keys.stage],
                   key_column + slab * 64, tile * G::kKeys, work.batch);
        }
        barrier_wait(&shared.value_empty[keys.stage], keys.parity ^ 1);
        barrier_expect_bytes(&shared.value_full[keys.stage], kTileBytes);
        for (int slab = 0; slab < G::kSlabs; ++slab) {
          tma_load(&key_map, shared.value[keys.stage][slab], &shared.value_full[keys.stage],
                   value_column + slab * 64, tile * G::kKeys, work.batch);
        }
        keys.advance();
      }
    }
  } else {
    take_registers<240>();
    const int consumer = warpgroup - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const float to_base_2 = call.scale * kLog2E;
    Ring<G::kQueryStages> queries;
    Ring<G::kKeyStages> keys;
    auto release = [&](Barrier& barrier) {
      if (lane == 0) barrier_arrive(&barrier);
    };
    // product (64, keys) = rows (64, head) · tile (keys, head)ᵀ
    auto multiply_tile = [&](float(&product)[G::kKeys / 2],
                             const bfloat16(&rows)[G::kSlabs][64 * 64],
                             const bfloat16(&tile)[G::kSlabs][G::kKeys * 64]) {
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        Wgmma<G::kKeys>::template multiply<0>(
            product, slab_descriptor(rows[step / 4]) + step % 4 * kNext16Columns,
            slab_descriptor(tile[step / 4]) + step % 4 * kNext16Columns, step > 0);
      }
    };

    // A query tile: the position of its rows, and the softmax statistics of a thread's two rows.
    struct Rows {
      int batch, head, row, key_tiles, first_tile;
      float lse[2], row_sum[2];
    };
    // Opens the next query tile of this block and skips key tiles beyond the tile's diagonal. Rows
    // beyond the end have probability 0.
    auto open = [&](Rows& rows) {
      barrier_wait(&shared.query_full[queries.stage], queries.parity);
      const int index = shared.work[queries.stage];
      if (index >= queue.works) return false;
      const Work work = work_at(index, queue, call);
      const int first_query = work.query_tile * G::kQueries + consumer * 64;
      rows = {work.batch, work.head, first_query + thread / 32 * 16 + lane / 4,
              key_tiles(first_query + 64), kFirstKey ? shared.first_tile[queries.stage] : 0};
      const size_t line =
          (static_cast<size_t>(work.batch) * call.heads + work.head) * call.padded_time() +
          rows.row;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows.lse[h] = statistics.lse[line + 8 * h];
        rows.row_sum[h] = statistics.row_sum[line + 8 * h];
      }
      for (int tile = key_tiles((work.query_tile + 1) * G::kQueries); tile > rows.key_tiles;
           --tile) {
        barrier_wait(&shared.key_full[keys.stage], keys.parity);
        release(shared.key_empty[keys.stage]);
        barrier_wait(&shared.value_full[keys.stage], keys.parity);
        release(shared.value_empty[keys.stage]);
        keys.advance();
      }
      return true;
    };

    float s[G::kKeys / 2], d_p[G::kKeys / 2], dq[kHead / 2];
    uint32_t p[G::kKeys / 4] = {};                // p, then dS
    auto accumulate = [&](int stage, bool add) {  // dq += dS k
#pragma unroll
      for (int step = 0; step < G::kKeys / 16; ++step) {
        Wgmma<kHead>::template multiply<1>(
            dq, p + 4 * step,
            slab_descriptor(shared.key[stage][0], G::kKeys * 128) + step * kNext16Rows,
            step > 0 || add);
      }
    };
    auto write = [&](const Rows& rows) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (rows.row + 8 * h < call.time) {
          bfloat16* to =
              dqkv +
              (static_cast<size_t>(rows.batch) * call.time + rows.row + 8 * h) * call.width() +
              rows.head * kHead + lane % 4 * 2;
#pragma unroll
          for (int i = 0; i < kHead / 8; ++i) {
            *reinterpret_cast<uint32_t*>(to + 8 * i) =
                pack_bf16(dq[4 * i + 2 * h] * call.scale, dq[4 * i + 2 * h + 1] * call.scale);
          }
        }
      }
    };

    Rows rows, before = {}, after;
    bool more = open(rows), add = false;
    barrier_wait(&shared.key_full[keys.stage], keys.parity);
    wgmma_fence();
    multiply_tile(s, shared.query[queries.stage][consumer], shared.key[keys.stage]);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);

    int tile = rows.key_tiles - 1, stage_before = -1;
    while (true) {
      // s is done. p holds dS of the previous tile, stage_before its keys, and `add` says whether
      // dq already has a sum.
      const int stage = keys.stage, query_stage = queries.stage;
      wgmma_fence();
      accumulate(stage_before < 0 ? stage : stage_before, add);
      wgmma_commit();
      barrier_wait(&shared.value_full[stage], keys.parity);
      wgmma_fence();
      multiply_tile(d_p, shared.d_output[query_stage][consumer], shared.value[stage]);
      wgmma_commit();
      const bool first = tile == rows.key_tiles - 1,
                 last = tile == (kFirstKey ? rows.first_tile : 0);
      if (first) {
        const int diagonal = rows.row - tile * G::kKeys - lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < G::kKeys / 2; ++i) {
          if (i / 4 * 8 + i % 2 > diagonal + i / 2 % 2 * 8) s[i] = -INFINITY;
        }
      }
      if constexpr (kFirstKey) {
        int from[2];
#pragma unroll
        for (int h = 0; h < 2; ++h)
          from[h] = first_key(call, rows.batch, rows.row + 8 * h) - tile * G::kKeys;
        if (from[1] > 0) {
#pragma unroll
          for (int i = 0; i < G::kKeys / 2; ++i) {
            if (i / 4 * 8 + i % 2 < from[i / 2 % 2] - lane % 4 * 2) s[i] = -INFINITY;
          }
        }
      }
      if (rows.lse[0] == -INFINITY) {  // large scores; the branch is uniform in a warp
        const size_t line = static_cast<size_t>(rows.batch) * call.heads + rows.head;
        const float2 exact[2] = {exact_row(statistics, call, line, rows.row),
                                 exact_row(statistics, call, line, rows.row + 8)};
#pragma unroll
        for (int i = 0; i < G::kKeys / 2; ++i) {
          s[i] = exp2_approximate(fmaf(s[i] - exact[i / 2 % 2].x, to_base_2, -exact[i / 2 % 2].y));
        }
      } else {
#pragma unroll
        for (int i = 0; i < G::kKeys / 2; ++i)
          s[i] = exp2_approximate(fmaf(s[i], to_base_2, -rows.lse[i / 2 % 2]));
      }
      wgmma_wait<1>();
      pin(dq);
      pin(p);
      if (stage_before >= 0) {
        release(shared.key_empty[stage_before]);
        if (first) write(before);
      }
      as_operand(s, p);

      keys.advance();
      if (last) {
        queries.advance();
        more = open(after);
      }
      int next_stage = stage, next_query_stage = query_stage;
      if (more) {
        next_stage = keys.stage;
        next_query_stage = queries.stage;
        barrier_wait(&shared.key_full[keys.stage], keys.parity);
      }
      wgmma_fence();
      multiply_tile(s, shared.query[next_query_stage][consumer], shared.key[next_stage]);
      wgmma_commit();
      wgmma_wait<1>();
      pin(d_p);
      release(shared.value_empty[stage]);
#pragma unroll
      for (int i = 0; i < G::kKeys / 4; ++i) {
        const float low = __uint_as_float(p[i] << 16), high = __uint_as_float(p[i] & 0xffff0000u);
        p[i] = pack_bf16(low * (d_p[2 * i] - rows.row_sum[i % 2]),
                         high * (d_p[2 * i + 1] - rows.row_sum[i % 2]));
      }
      wgmma_wait<0>();
      pin(s);
      stage_before = stage;
      add = !first;
      if (last) {
        release_stage(&shared.query_empty[query_stage]);
        before = rows;
        if (!more) break;
        rows = after;
        tile = rows.key_tiles;
      }
      --tile;
    }
    wgmma_fence();
    accumulate(stage_before, add);
    wgmma_commit();
    wgmma_wait<0>();
    pin(dq);
    write(before);
  }
#endif
}

}  // namespace llamaforge::cuda

// Gradients of keys and values for Hopper:  dv = Σ pᵀ dO,  dk = scale · Σ dSᵀ q,  summed over the
// queries after each key and the query heads of its group. A block owns 128 keys of one kv head and
// walks all these queries, so sums stay in f32 registers and have one order. It computes the
// transposes Sᵀ = k qᵀ and dPᵀ = v dOᵀ, so that pᵀ and dSᵀ come out as register operands.
//
// A warpgroup overlaps its products with its exponentials:
//   exp of tile n           while  dk += dSᵀ q of tile n - 1, dPᵀ of tile n
//   dS of tile n            while  dv += pᵀ dO of tile n, Sᵀ of tile n + 1
// Query tiles have 64 rows, because with 128 rows the sums, scores and operands in flight would not
// fit the registers. At head size 64, keys and values stay in registers too: with 64 columns per
// product, shared memory would have to deliver both operands at its limit.
#pragma once

#include "cuda/attention/first_key.cuh"
#include "cuda/attention/hopper.cuh"

namespace llamaforge::cuda {

template <int kHead>
struct KeyGradient {
  static constexpr int kConsumers = 2, kKeys = 64 * kConsumers, kQueries = 64;
  static constexpr int kSlabs = (kHead + 63) / 64, kStages = kHead == 64 ? 6 : 4;
  static constexpr bool kKeysInRegisters = kHead == 64;
  // Computes Sᵀ of the next tile, and dPᵀ, under the exponentials.
  static constexpr bool kAhead = kHead < 128;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr uint32_t kStageBytes =
      2 * kSlabs * kQueries * 64 * sizeof(bfloat16) + 2 * kQueries * sizeof(float);

  struct alignas(1024) Shared {
    bfloat16 key[kConsumers][kSlabs][64 * 64];
    bfloat16 value[kConsumers][kSlabs][64 * 64];
    bfloat16 query[kStages][kSlabs][kQueries * 64];
    bfloat16 d_output[kStages][kSlabs][kQueries * 64];
    float lse[kStages][kQueries], row_sum[kStages][kQueries];
    hopper::Barrier key_full, full[kStages], empty[kStages];
  };
};

template <int kHead, bool kFirstKey>
__global__ void __launch_bounds__(KeyGradient<kHead>::kThreads, 1)
    attention_key_gradient_kernel(const __grid_constant__ CUtensorMap key_map,
                                  const __grid_constant__ CUtensorMap query_map,
                                  const __grid_constant__ CUtensorMap d_output_map,
                                  const AttentionStatistics statistics, bfloat16* __restrict__ dqkv,
                                  const int section, const AttentionCall call) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using namespace hopper;
  using G = KeyGradient<kHead>;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<typename G::Shared*>(memory);
  // The shuffle makes it uniform for the compiler.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  // Blocks start in this order: sections of kv heads whose queries fit the L2 cache, in each the
  // longest walks first.
  const int key_tiles = (call.time + G::kKeys - 1) / G::kKeys, lines = call.batch * call.kv_heads;
  const int first_line = blockIdx.x / (section * key_tiles) * section,
            in_section = min(section, lines - first_line);
  const int place = blockIdx.x - first_line * key_tiles;
  const int key_tile = place / in_section, line = first_line + place % in_section;
  const int batch = line / call.kv_heads, kv_head = line % call.kv_heads;
  const int first_tile = key_tile * G::kKeys / G::kQueries;
  // Queries from `end` on see none of the keys. Queries before `whole` see every key that is not
  // behind them.
  int end = call.time, whole = call.time;
  if constexpr (kFirstKey) {
    const int first = key_tile * G::kKeys;
    end = end_of_queries(call, batch, first, min(first + G::kKeys, call.time) - 1);
    whole = end_of_queries(call, batch, first, first);
  }
  const int tiles = (end + G::kQueries - 1) / G::kQueries - first_tile;  // tiles of one head
  const int walks = tiles * call.group();

  if (threadIdx.x == 0) {
    barrier_init(&shared.key_full, 1);
    for (int i = 0; i < G::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], 4 * G::kConsumers * kReleaseArrivals);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (warpgroup == 0) {  // the producer is one thread
    give_registers<40>();
    if (threadIdx.x != 0) return;
    const int key_column = (call.heads + kv_head) * kHead,
              value_column = key_column + call.kv_heads * kHead;
    barrier_expect_bytes(&shared.key_full,
                         2 * G::kConsumers * G::kSlabs * 64 * 64 * sizeof(bfloat16));
    for (int i = 0; i < G::kConsumers; ++i) {
      for (int slab = 0; slab < G::kSlabs; ++slab) {
        const int time = key_tile * G::kKeys + i * 64;
        tma_load(&key_map, shared.key[i][slab], &shared.key_full, key_column + slab * 64, time,
                 batch);
        tma_load(&key_map, shared.value[i][slab], &shared.key_full, value_column + slab * 64, time,
                 batch);
      }
    }
    Ring<G::kStages> ring;
    for (int walk = 0; walk < walks; ++walk) {
      const int head = kv_head * call.group() + walk / tiles,
                time = (first_tile + walk % tiles) * G::kQueries;
      Barrier* const full = &shared.full[ring.stage];
      barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      barrier_expect_bytes(full, G::kStageBytes);
      for (int slab = 0; slab < G::kSlabs; ++slab) {
        tma_load(&query_map, shared.query[ring.stage][slab], full, head * kHead + slab * 64, time,
                 batch);
        tma_load(&d_output_map, shared.d_output[ring.stage][slab], full, head * kHead + slab * 64,
                 time, batch);
      }
      const size_t from =
          (static_cast<size_t>(batch) * call.heads + head) * call.padded_time() + time;
      bulk_load(statistics.lse + from, shared.lse[ring.stage], full, G::kQueries * sizeof(float));
      bulk_load(statistics.row_sum + from, shared.row_sum[ring.stage], full,
                G::kQueries * sizeof(float));
      ring.advance();
    }
  } else {
    take_registers<232>();
    const int consumer = warpgroup - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const float to_base_2 = call.scale * kLog2E;
    const int row = key_tile * G::kKeys + consumer * 64 + thread / 32 * 16 + lane / 4,
              column = lane % 4 * 2;
    Ring<G::kStages> ring;
    // product (64, queries) = rows (64, head) · tile (queries, head)ᵀ
    auto multiply_tile = [&](float(&product)[G::kQueries / 2],
                             const bfloat16(&rows)[G::kSlabs][64 * 64],
                             const uint32_t(&rows_in_registers)[kHead / 4],
                             const bfloat16(&tile)[G::kSlabs][G::kQueries * 64]) {
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        const uint64_t b = slab_descriptor(tile[step / 4]) + step % 4 * kNext16Columns;
        if constexpr (G::kKeysInRegisters) {
          Wgmma<G::kQueries>::template multiply<0>(product, rows_in_registers + 4 * step, b,
                                                   step > 0);
        } else {
          Wgmma<G::kQueries>::template multiply<0>(
              product, slab_descriptor(rows[step / 4]) + step % 4 * kNext16Columns, b, step > 0);
        }
      }
    };
    // sum (64, head) += p (64, queries) · tile (queries, head)
    auto accumulate = [&](float(&sum)[kHead / 2], const uint32_t(&p)[G::kQueries / 4],
                          const bfloat16(&tile)[G::kSlabs][G::kQueries * 64], bool add) {
#pragma unroll
      for (int step = 0; step < G::kQueries / 16; ++step) {
        Wgmma<kHead>::template multiply<1>(
            sum, p + 4 * step, slab_descriptor(tile[0], G::kQueries * 128) + step * kNext16Rows,
            step > 0 || add);
      }
    };

    float s[G::kQueries / 2], d_p[G::kQueries / 2], dk[kHead / 2], dv[kHead / 2];
    uint32_t p[G::kQueries / 4] = {};  // pᵀ, then dSᵀ
    uint32_t key[kHead / 4], value[kHead / 4];
    barrier_wait(&shared.key_full, 0);
    if constexpr (G::kKeysInRegisters) {
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        load_operand(shared.key[consumer][step / 4], step % 4, key + 4 * step);
        load_operand(shared.value[consumer][step / 4], step % 4, value + 4 * step);
      }
    }
    float2 lse[G::kQueries / 8];  // for the tile of s
    auto read_rows = [&](float2(&values)[G::kQueries / 8], const float(&rows)[G::kQueries]) {
#pragma unroll
      for (int j = 0; j < G::kQueries / 8; ++j)
        values[j] = *reinterpret_cast<const float2*>(&rows[8 * j + column]);
    };
    auto start_scores = [&](int stage) {
      wgmma_fence();
      multiply_tile(s, shared.key[consumer], key, shared.query[stage]);
      wgmma_commit();
      read_rows(lse, shared.lse[stage]);
    };
    auto start_gradient = [&](int stage) {
      wgmma_fence();
      multiply_tile(d_p, shared.value[consumer], value, shared.d_output[stage]);
      wgmma_commit();
    };
    barrier_wait(&shared.full[0], 0);
    if (G::kAhead) {
      start_scores(0);
      wgmma_wait<0>();
      pin(s);
    }

    // Warpgroups take turns at the exponentials. If both ran exponentials at the same time, they
    // would share that unit and then both wait for the other units.
    if (consumer == 1) named_arrive(1, 256);
    // A single loop body lets the compiler see products in flight only inside an iteration; with
    // products in flight around a loop, it waits after each of them. So the first iteration adds
    // zeros to a sum that nobody reads, and the last computes one Sᵀ too many.
    int stage_before = 0, tile = 0;
    for (int walk = 0; walk < walks; ++walk) {
      // p holds dSᵀ of the previous tile; with kAhead, s is done.
      const int stage = ring.stage;
      wgmma_fence();
      accumulate(dk, p, shared.query[stage_before], walk > 1);
      wgmma_commit();
      float2 row_sum[G::kQueries / 8];  // read early, so that the loads wait while the products run
      if constexpr (G::kAhead) {
        start_gradient(stage);
        read_rows(row_sum, shared.row_sum[stage]);
      } else {
        start_scores(stage);
        wgmma_wait<0>();
        pin(s);
      }
      named_sync(1 + consumer, 256);
      if (lse[0].x == -INFINITY) {  // large scores; the branch is uniform in a warp
        const size_t of_head =
            static_cast<size_t>(batch) * call.heads + kv_head * call.group() + walk / tiles;
#pragma unroll
        for (int i = 0; i < G::kQueries / 2; ++i) {
          const int query = (first_tile + tile) * G::kQueries + i / 4 * 8 + column + i % 2;
          const float2 exact = exact_row(statistics, call, of_head, query);
          s[i] = exp2_approximate(fmaf(s[i] - exact.x, to_base_2, -exact.y));
        }
      } else {
#pragma unroll
        for (int j = 0; j < G::kQueries / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            s[4 * j + i] =
                exp2_approximate(fmaf(s[4 * j + i], to_base_2, i % 2 ? -lse[j].y : -lse[j].x));
          }
        }
      }
      named_arrive(2 - consumer, 256);
      if (tile * G::kQueries < G::kKeys) {  // on the diagonal: queries before the key do not see it
        const int diagonal = row - (first_tile + tile) * G::kQueries - column;
#pragma unroll
        for (int i = 0; i < G::kQueries / 2; ++i) {
          if (i / 4 * 8 + i % 2 < diagonal + i / 2 % 2 * 8) s[i] = 0;
        }
      }
      if (kFirstKey && (first_tile + tile + 1) * G::kQueries > whole) {
#pragma unroll
        for (int j = 0; j < G::kQueries / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int query = (first_tile + tile) * G::kQueries + 8 * j + column + c;
            const int from = first_key(call, batch, query) - row;
            if (from > 0) s[4 * j + c] = 0;
            if (from > 8) s[4 * j + 2 + c] = 0;
          }
        }
      }
      if (++tile == tiles) tile = 0;
      wgmma_wait<G::kAhead ? 1 : 0>();
      pin(dk);
      pin(p);
      if (walk > 0) release_stage(&shared.empty[stage_before]);
      as_operand(s, p);
      if constexpr (!G::kAhead) {
        start_gradient(stage);
        read_rows(row_sum, shared.row_sum[stage]);
      }
      wgmma_fence();
      accumulate(dv, p, shared.d_output[stage], walk > 0);
      wgmma_commit();

      int next_stage = stage;
      if (walk + 1 < walks) {
        ring.advance();
        next_stage = ring.stage;
        barrier_wait(&shared.full[next_stage], ring.parity);
      }
      if constexpr (G::kAhead) start_scores(next_stage);
      wgmma_wait<G::kAhead ? 2 : 1>();
      pin(d_p);
#pragma unroll
      for (int j = 0; j < G::kQueries / 8; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t pair = p[2 * j + h];
          float& low = d_p[4 * j + 2 * h];
          float& high = d_p[4 * j + 2 * h + 1];
          low = __uint_as_float(pair << 16) * (low - row_sum[j].x);
          high = __uint_as_float(pair & 0xffff0000u) * (high - row_sum[j].y);
        }
      }
      wgmma_wait<0>();
      pin(s);
      pin(dv);
      pin(p);
      as_operand(d_p, p);
      stage_before = stage;
    }
    wgmma_fence();
    accumulate(dk, p, shared.query[stage_before], walks > 1);
    wgmma_commit();
    // Takes the last turn that was passed, because nobody else takes it.
    if (consumer == 0) named_sync(1, 256);
    wgmma_wait<0>();
    pin(dk);
    pin(dv);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + 8 * h < call.time) {
        bfloat16* to_key = dqkv +
                           (static_cast<size_t>(batch) * call.time + row + 8 * h) * call.width() +
                           (call.heads + kv_head) * kHead + column;
        bfloat16* to_value = to_key + call.kv_heads * kHead;
#pragma unroll
        for (int i = 0; i < kHead / 8; ++i) {
          *reinterpret_cast<uint32_t*>(to_key + 8 * i) =
              pack_bf16(dk[4 * i + 2 * h] * call.scale, dk[4 * i + 2 * h + 1] * call.scale);
          *reinterpret_cast<uint32_t*>(to_value + 8 * i) =
              pack_bf16(dv[4 * i + 2 * h], dv[4 * i + 2 * h + 1]);
        }
      }
    }
  }
#endif
}

}  // namespace llamaforge::cuda

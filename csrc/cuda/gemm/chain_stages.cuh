// The stages of a chain: the weights of products, and the keys and values of attentions, in the
// pieces that a block copies ahead of the links.
#pragma once

#include "cuda/gemm/chain_ring.cuh"

namespace llamaforge::cuda::chain {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using few::kBlock;
using few::kTile;

// Copies the token's place and pages. Called by kBlock threads.
__device__ __forceinline__ void copy_places(Places& places, const paged::Pages& pages) {
  const int pages_used = pages.position(0) / pages.page + 1;
  const int32_t* const table = pages.table + int64_t{pages.sequence(0)} * pages.table_width;
  for (int i = threadIdx.x; i < pages_used; i += kBlock) places.table[i] = table[i];
  if (threadIdx.x == 0) places.position = pages.positions[0];
}

// Lets an attention find its token's place and pages there.
__device__ __forceinline__ void use_places(paged::Pages& pages, const Places& places) {
  pages.table = places.table;
  pages.sequences = nullptr;
  pages.sequences_count = 1;
  pages.positions = &places.position;
}

// The part of a product that belongs to the tile of `count` outputs from `output` on: its low rows
// of w, and its high rows, which are those of up with SwiGLU and the second half of the outputs
// without. A tile at the end may have no high rows.
struct Half {
  int row, rows;
};
__device__ __forceinline__ Half half_of_tile(bool high, bool swiglu, int output, int count,
                                             int outputs) {
  if (swiglu) return {high ? output + outputs : output, count};
  return high ? Half{output + kRowsOfStage, count - kRowsOfStage}
              : Half{output, min(count, kRowsOfStage)};
}

// The parts of an attention's item that have keys, as step() of paged_step.cuh divides them. Each
// is a stage: the keys in the first rows, then the values.
struct Parts {
  int begin, low, high;  // keys: of the first part, and those that are seen
  int first, last;       // parts; none if last < first
};
constexpr int kGroup = 16, kGroupsOfRow = 2;  // keys that are copied at once
__device__ __forceinline__ Parts parts_of(const paged::Call& c, const paged::Pages& pages,
                                          int token, int nth) {
  const int position = pages.position(token);
  const int first = paged::Units::first_key(c.call, token, position);
  const int begin = (first / paged::kUnit + nth) * paged::kUnit, low = max(first, begin),
            high = min(position + 1, begin + paged::kUnit);
  return {begin, low, high, (low - begin) / paged::kKeys,
          low < high ? (high - 1 - begin) / paged::kKeys : -1};
}

// The items of an attention: a token, a kv head and a unit of keys each.
struct Items {
  int per_token, units, count;
  __device__ __forceinline__ explicit Items(const paged::Call& c)
      : per_token(c.call.kv_heads * c.most_units),
        units(c.most_units),
        count(c.call.batch * c.call.time * per_token) {}
  struct Item {
    int token, kv_head, nth;
  };
  // A division takes some 20 instructions, for which all blocks wait.
  __device__ __forceinline__ Item at(int number) const {
    const int token = number < per_token ? 0 : number / per_token, own = number - token * per_token;
    const int kv_head = own / units;
    return {token, kv_head, own - kv_head * units};
  }
};

// A piece of a stage, which one lane copies. `place` counts elements from the stage's first one on.
struct Piece {
  const bfloat16* from;
  int place;
  uint32_t bytes;  // 0: nothing
};

// Calls stage(rows, bytes, piece) for each stage of the block's weights of a product: its rows of
// the ring, its bytes, and the calling lane's piece of it.
template <class Stage>
__device__ __forceinline__ void for_weights(const Product& product, const Stage& stage) {
  const bfloat16* const w = product.w;
  const int k = product.sizes.k, outputs = product.sizes.outputs;
  const bool swiglu = product.swiglu;
  const int tile = swiglu ? kTile<true> : kTile<false>, lane = static_cast<int>(threadIdx.x) % 32;
  const int end = first_output(outputs, blockIdx.x + 1);
  for (int output = first_output(outputs, blockIdx.x); output < end; output += tile) {
    const int count = min(tile, end - output);
    for (int column = 0; column < k; column += kStage) {
      const auto bytes = static_cast<uint32_t>(min(kStage, k - column) * 2);
#pragma unroll 1  // two copies of the code make a step some 0.5% slower (docs/LOG.md)
      for (const bool high : {false, true}) {
        const Half half = half_of_tile(high, swiglu, output, count, outputs);
        if (half.rows <= 0) continue;
        stage(half.rows, half.rows * bytes,
              Piece{w + int64_t{half.row + lane} * k + column, lane * kPitch,
                    lane < half.rows ? bytes : 0});
      }
    }
  }
}

// Calls stage() for each part of the keys and values of the block's items of an attention. A piece
// has 16 keys, which lie in one page.
template <class Stage>
__device__ __forceinline__ void for_keys(const paged::Call& c, const paged::Pages& pages,
                                         const Stage& stage) {
  constexpr int kGroups = paged::kKeys / kGroup;
  const int lane = static_cast<int>(threadIdx.x) % 32, size = c.call.head_size;
  const auto bytes = static_cast<uint32_t>(kGroup * size * 2);
  const Items items(c);
  for (int number = blockIdx.x; number < items.count; number += gridDim.x) {
    const auto [token, kv_head, nth] = items.at(number);
    const Parts parts = parts_of(c, pages, token, nth);
    for (int part = parts.first; part <= parts.last; ++part) {
      const int begin = parts.begin + part * paged::kKeys;
      const auto exists = [&](int group) {
        const int from = begin + group * kGroup;
        return from < parts.high && from + kGroup > parts.low;
      };
      int groups = 0;
      for (int group = 0; group < kGroups; ++group) groups += exists(group) ? 1 : 0;
      const int group = lane % kGroups, of_values = lane / kGroups;
      Piece piece = {};
      if (of_values <= 1 && exists(group)) {
        piece = {pages.row(token, kv_head + of_values * c.call.kv_heads, begin + group * kGroup,
                           c.call.kv_heads, size),
                 (of_values * kKeyRows / 2 + group / kGroupsOfRow) * kPitch +
                     group % kGroupsOfRow * kGroup * size,
                 bytes};
      }
      stage(kKeyRows, 2 * groups * bytes, piece);
    }
  }
}

// Brings the keys and values of the block's items to the L2 cache.
__device__ __forceinline__ void prefetch_keys(const paged::Call& c, const paged::Pages& pages) {
  const int lane = static_cast<int>(threadIdx.x) % 32, page = pages.page;
  const Items items(c);
  for (int number = blockIdx.x; number < items.count; number += gridDim.x) {
    const auto [token, kv_head, nth] = items.at(number);
    const Parts parts = parts_of(c, pages, token, nth);
    for (int index = parts.low / page * page + lane * page; index < parts.high;
         index += 32 * page) {
      const int from = max(parts.low, index);
      const auto bytes =
          static_cast<uint32_t>((min(parts.high, index + page) - from) * c.call.head_size * 2);
      for (const int head : {kv_head, c.call.kv_heads + kv_head}) {
        const bfloat16* const row = pages.row(token, head, from, c.call.kv_heads, c.call.head_size);
        hopper::prefetch(row, bytes);
      }
    }
  }
}

// Calls weights(product) and keys(call, pages) for what the block's links read and no link makes,
// in the order of links.
template <class Weights, class Keys>
__device__ __forceinline__ void for_links(const Header* header, const Link* links,
                                          const Places& places, hopper::Barrier* have_places,
                                          const Weights& weights, const Keys& keys) {
  const int count = header->count;
  for (int l = 0; l < count; ++l) {
    const Link& link = links[l];
    if (!link.is_attention) {
      weights(link.product);
      continue;
    }
    hopper::barrier_wait(have_places, 0);
    paged::Pages pages = link.attention.call.pages;
    use_places(pages, places);
    keys(link.attention.call, pages);
  }
}

#endif

}  // namespace llamaforge::cuda::chain

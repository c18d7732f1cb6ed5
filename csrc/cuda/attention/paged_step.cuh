// One token of each sequence over its pages (paged_mma.cu and chain.cu): the call of attention over
// pages, the newest key and value, and the work of a block.
#pragma once

#include "cuda/attention/attention_kernels.h"
#include "cuda/attention/paged_mma.cuh"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda::paged {

// A call of attention over pages.
struct Call {
  AttentionCall call;
  Pages pages;
  const bfloat16* qkv;
  bfloat16* o;
  Angles angles;
  float* partial;      // of each token, head and unit: maximum, sum, outputs (kLine)
  unsigned* counters;  // of each token and kv head
  int most_units;
  FaultSite wrong_sequence, wrong_position, wrong_page, wrong_angle;
};

// Reads words of eight numbers from qkv's memory, past the L1 cache.
struct ReadMemory {
  const bfloat16* qkv;
  template <int kCount>
  __device__ __forceinline__ void operator()(const int64_t (&at)[kCount],
                                             uint4 (&words)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) words[i] = __ldcg(reinterpret_cast<const uint4*>(qkv + at[i]));
  }
};

// Reports values outside of the tensors; the kernels use the nearest values inside. Called by a
// warp, once for each token.
__device__ inline void check(const Call& c, int token) {
  const Pages& pages = c.pages;
  const int sequence = pages.sequences ? pages.sequences[token] : token,
            position = pages.positions[token];
  const int length = pages.table_width * pages.page, lane = threadIdx.x % 32;
  for (int i = lane; i <= pages.position(token) / pages.page; i += 32) {
    const int own = pages.table[pages.sequence(token) * pages.table_width + i];
    if (own < 0 || own >= pages.pages_count)
      report(c.wrong_page, own, sequence, pages.pages_count - 1);
  }
  if (lane != 0) return;
  if (sequence < 0 || sequence >= pages.sequences_count) {
    report(c.wrong_sequence, sequence, token, pages.sequences_count - 1);
  }
  if (position < 0 || position >= length) report(c.wrong_position, position, token, length - 1);
  if (c.angles.table && (position < 0 || position >= c.angles.rows)) {
    report(c.wrong_angle, position, token, c.angles.rows - 1);
  }
}

// The key of a token's kv head, turned, and its value, as a lane of a warp holds them, and their
// places in a page.
template <int kSize>
struct Newest {
  static constexpr int kKeyWords = kSize / 32, kWords = kKeyWords + kSize / 64;
  uint4 key[kKeyWords], value[kSize / 64];
  bfloat16 *to_key, *to_value;

  __device__ __forceinline__ void find(const Pages& pages, int token, int kv_head, int kv_heads) {
    const int position = pages.position(token);
    to_key = pages.row(token, kv_head, position, kv_heads, kSize);
    to_value = to_key + int64_t{kv_heads} * pages.page * kSize;
  }
  // Fills at[0..kWords-1] with the places of the lane's words in qkv.
  static __device__ __forceinline__ void places(const Call& c, int token, int kv_head,
                                                int64_t* at) {
    const int64_t from = int64_t{token} * c.call.width() + (c.call.heads + kv_head) * kSize;
    places_of_row<kSize>(from, at);
#pragma unroll
    for (int wide = 0; wide < kSize / 64; ++wide) {
      at[kKeyWords + wide] = from + c.call.kv_heads * kSize + wide * 64 + threadIdx.x % 32 / 4 * 8;
    }
  }
  // Takes the words of those places.
  __device__ __forceinline__ void take(const uint4* words) {
#pragma unroll
    for (int b = 0; b < kKeyWords; ++b) key[b] = words[b];
#pragma unroll
    for (int wide = 0; wide < kSize / 64; ++wide) value[wide] = words[kKeyWords + wide];
  }
  template <class Read>
  __device__ __forceinline__ void read(const Call& c, int token, int kv_head,
                                       const Read& read_qkv) {
    int64_t at[kWords];
    uint4 words[kWords];
    places(c, token, kv_head, at);
    read_qkv(at, words);
    take(words);
  }
  __device__ __forceinline__ void append(const Call& c, const Turn<kSize>& turn) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    if (c.angles.table) turn.apply(key);
    if (g == 0) {
#pragma unroll
      for (int b = 0; b < kSize / 32; ++b)
        *reinterpret_cast<uint4*>(to_key + b * 32 + t * 8) = key[b];
    }
    if (t == 0) {
#pragma unroll
      for (int wide = 0; wide < kSize / 64; ++wide) {
        *reinterpret_cast<uint4*>(to_value + wide * 64 + g * 8) = value[wide];
      }
    }
  }
};

// Reads the lane's words of the rows g and g + 8 of the queries, and of the newest key and value.
// The words of the first 8 rows and of the newest key are asked for at once, because an answer
// takes long beside the arithmetic. A row without a query becomes 0.
template <int kSize, class Read>
__device__ __forceinline__ void read_queries(const Call& c, int token, int kv_head, bool has_newest,
                                             Newest<kSize>& newest, const Read& read_qkv,
                                             uint4 (&query)[2][kSize / 32]) {
  constexpr int kBlocks = kSize / 32, kWords = Newest<kSize>::kWords;
  const int group = c.call.group(), g = threadIdx.x % 32 / 4;
  const auto row = [&](int own) {
    return int64_t{token} * c.call.width() + (kv_head * group + min(own, group - 1)) * kSize;
  };
  if (has_newest) {
    int64_t at[kBlocks + kWords];
    uint4 words[kBlocks + kWords];
    places_of_row<kSize>(row(g), at);
    Newest<kSize>::places(c, token, kv_head, at + kBlocks);
    read_qkv(at, words);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) query[0][b] = words[b];
    newest.take(words + kBlocks);
  } else {
    read_row<kSize>(row(g), read_qkv, query[0]);
  }
  if (group > 8) read_row<kSize>(row(g + 8), read_qkv, query[1]);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (g + 8 * h < group) continue;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) query[h][b] = make_uint4(0, 0, 0, 0);
  }
}

// A token's earlier keys and values, read from their pages: those of size 64 to registers, since a
// warp has room for them.
template <int kSize>
struct KeysFromMemory {
  const Pages& pages;
  int sequence, kv_head, kv_heads;

  __device__ __forceinline__ auto read(const KeyRange& range) const {
    const KeysInMemory<kSize> memory(pages, sequence, kv_head, kv_heads, range);
    if constexpr (kSize == 64) {
      KeysInRegisters<kSize> registers;
      registers.read(memory);
      return registers;
    } else {
      return memory;
    }
  }
};

// Floats of a row's partial result: the maximum, the sum and kSize outputs. The warps of a unit
// exchange such lines in shared memory, and the units of paged_mma.cu in global memory.
template <int kSize>
constexpr int kLine = kSize + 2;

// Shared memory of step().
inline size_t lines_bytes(const AttentionCall& call) {
  return static_cast<size_t>(kParts) * call.group() * (call.head_size + 2) * sizeof(float);
}

// The units that have keys of a token.
struct Units {
  int first, count;
  __device__ __forceinline__ Units(const AttentionCall& call, int token, int last)
      : first(first_key(call, token, last) / kUnit), count(last / kUnit - first + 1) {}
  static __device__ __forceinline__ int first_key(const AttentionCall& call, int token, int last) {
    return call.first_key ? max(0, min(call.first_key[token], last)) : 0;
  }
};

// The attention of a token and kv head over its unit number `nth`, by 32 · kStepWarps threads.
// `pages` are those of the call, or a copy whose tables are in shared memory. `lines` is shared
// memory (kParts, group, kLine). wait() returns once the query exists; until then only keys of
// earlier tokens are read. One warp of a token and kv head calls meanwhile() while its keys are on
// their way. keys.read(range) returns a source of a warp's earlier keys and values for
// Part::compute(). read_qkv(at, words) fills each word with the eight numbers of qkv from its place
// on. write(at, sum) takes two numbers of the result if the token has one unit. If it has several,
// put(head, d, sum) takes those of the unit: numbers d and d + 1 of a query head, counted over all
// tokens.
template <int kSize, int kStepWarps, class Threads, class Wait, class Meanwhile, class Keys,
          class Read, class Write, class Put>
__device__ __forceinline__ void step(const Call& c, const Pages& pages, int token, int kv_head,
                                     int nth, float* lines, const Wait& wait,
                                     const Meanwhile& meanwhile, const Keys& keys,
                                     const Read& read_qkv, const Write& write, const Put& put) {
  constexpr int kThreadsOfStep = 32 * kStepWarps;
  const int group = c.call.group();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int last = pages.position(token);
  const int first = Units::first_key(c.call, token, last);
  const Units units(c.call, token, last);
  const int unit = units.first + nth;
  if (nth >= units.count) return wait();
  Turn<kSize> turn;
  turn.read(c.angles, pages.positions[token]);
  uint4 query[2][kSize / 32];
  bool queries_read = false;
#pragma unroll
  for (int own = warp; own < kParts; own += kStepWarps) {
    const int begin = unit * kUnit + own * kKeys, low = max(first, begin),
              high = min(last + 1, begin + kKeys);
    float* const line = lines + own * group * kLine<kSize>;
    Part<kSize> part;
    part.clear();
    if (low < high) {
      const bool has_newest = high - 1 == last;
      Newest<kSize> newest;
      if (has_newest) newest.find(pages, token, kv_head, c.call.kv_heads);
      auto source = keys.read({begin, low, high});
      if (has_newest) meanwhile();
      if (!queries_read) {
        wait();
        read_queries<kSize>(c, token, kv_head, has_newest, newest, read_qkv, query);
        if (c.angles.table) {
          turn.apply(query[0]);
          if (group > 8) turn.apply(query[1]);
        }
        queries_read = true;
      } else if (has_newest) {
        newest.read(c, token, kv_head, read_qkv);
      }
      if (has_newest) {
        newest.append(c, turn);
        source.replace(last, newest.key, newest.value);
      }
      const int firsts[2] = {first, first}, lasts[2] = {last, last};
      part.compute(query, source, c.call.scale, firsts, lasts, group);
    }
    part.write(line, kLine<kSize>, group, lane);
  }
  if (!queries_read) wait();
  Threads::sync();

  // The parts that have keys: to fold another part would change no bit.
  const int first_part = max(0, first - unit * kUnit) / kKeys,
            last_part = min(kUnit - 1, last - unit * kUnit) / kKeys;
  const int64_t token_head = int64_t{token} * c.call.heads + kv_head * group;
  for (int i = 2 * threadIdx.x; i < group * kSize; i += 2 * kThreadsOfStep) {
    const int row = i / kSize, d = i % kSize;
    // All lines are on their way at once.
    float2 heads[kParts], numbers[kParts];
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (p < first_part || p > last_part) continue;
      const float* line = lines + (p * group + row) * kLine<kSize>;
      heads[p] = *reinterpret_cast<const float2*>(line);
      numbers[p] = *reinterpret_cast<const float2*>(line + 2 + d);
    }
    Pair sum;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (p >= first_part && p <= last_part) sum.fold(heads[p].x, heads[p].y, numbers[p]);
    }
    if (units.count == 1) {
      write((token_head + row) * kSize + d, sum);
    } else {
      put(token_head + row, d, sum);
    }
  }
}

}  // namespace llamaforge::cuda::paged

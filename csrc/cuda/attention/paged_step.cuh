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
  float* partial;      // of each token, head and unit: maximum, sum, outputs
  unsigned* counters;  // of each token and kv head
  int most_units;
  FaultSite wrong_sequence, wrong_position, wrong_page, wrong_angle;
};

// Eight numbers of qkv from its memory, past the L1 cache.
struct ReadMemory {
  const bfloat16* qkv;
  __device__ __forceinline__ uint4 operator()(int64_t at) const {
    return __ldcg(reinterpret_cast<const uint4*>(qkv + at));
  }
};

// Reports values outside of the tensors; the kernels use the nearest values inside. Called by a
// warp.
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
  uint4 key[kSize / 32], value[kSize / 64];
  bfloat16 *to_key, *to_value;

  __device__ __forceinline__ void find(const Call& c, int token, int kv_head) {
    const int position = c.pages.position(token);
    to_key = c.pages.row(token, kv_head, position, c.call.kv_heads, kSize);
    to_value = c.pages.row(token, c.call.kv_heads + kv_head, position, c.call.kv_heads, kSize);
  }
  template <class Read>
  __device__ __forceinline__ void read(const Call& c, int token, int kv_head,
                                       const Read& read_qkv) {
    const int64_t from = int64_t{token} * c.call.width() + (c.call.heads + kv_head) * kSize;
    read_row<kSize>(from, read_qkv, key);
#pragma unroll
    for (int wide = 0; wide < kSize / 64; ++wide) {
      value[wide] = read_qkv(from + c.call.kv_heads * kSize + wide * 64 + threadIdx.x % 32 / 4 * 8);
    }
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

// Floats of a row's partial result: the maximum, the sum and kSize outputs. The warps of a unit
// exchange such lines in shared memory, and units in global memory.
template <int kSize>
constexpr int kLine = kSize + 2;

// Shared memory of step().
inline size_t lines_bytes(const AttentionCall& call) {
  return static_cast<size_t>(kParts) * call.group() * (call.head_size + 2) * sizeof(float);
}

// The attention of a token and kv head over its unit number `nth`, by 32 · kStepWarps threads.
// `lines` is shared memory (kParts, group, kLine). wait() returns once the query exists; until then
// only keys of earlier tokens are read. read_qkv(at) returns eight numbers of qkv, and write(at, x)
// takes a number of the result.
template <int kSize, int kStepWarps, class Threads, class Wait, class Read, class Write>
__device__ __forceinline__ void step(const Call& c, int token, int kv_head, int nth, float* lines,
                                     const Wait& wait, const Read& read_qkv, const Write& write) {
  __shared__ bool is_last;
  constexpr bool kPreloads = kSize == 64;
  constexpr int kThreadsOfStep = 32 * kStepWarps;
  const int group = c.call.group();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
  const int sequence = c.pages.sequence(token), last = c.pages.position(token);
  const int first = c.call.first_key ? max(0, min(c.call.first_key[token], last)) : 0;
  const int first_unit = first / kUnit, units = last / kUnit - first_unit + 1,
            unit = first_unit + nth;
  if (nth >= units) return wait();
  Turn<kSize> turn;
  turn.read(c.angles, c.pages.positions[token]);
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
      if (has_newest) {
        if (kv_head == 0) check(c, token);
        newest.find(c, token, kv_head);
      }
      const KeysInMemory<kSize> memory(c.pages, sequence, kv_head, c.call.kv_heads, begin, low,
                                       high);
      [[maybe_unused]] KeysInRegisters<kPreloads ? kSize : 64> registers;
      if constexpr (kPreloads) registers.read(memory);
      if (!queries_read) {
        wait();
        if (has_newest) newest.read(c, token, kv_head, read_qkv);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = g + 8 * h;
#pragma unroll
          for (int b = 0; b < kSize / 32; ++b) query[h][b] = make_uint4(0, 0, 0, 0);
          if (row < group) {
            read_row<kSize>(int64_t{token} * c.call.width() + (kv_head * group + row) * kSize,
                            read_qkv, query[h]);
          }
        }
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
        if constexpr (kPreloads) {
          registers.replace(memory, last, newest.key, newest.value);
        } else {
          __syncwarp();
        }
      }
      const int firsts[2] = {first, first}, lasts[2] = {last, last};
      if constexpr (kPreloads) {
        part.compute(query, registers, c.call.scale, begin, low, high, firsts, lasts);
      } else {
        part.compute(query, memory, c.call.scale, begin, low, high, firsts, lasts);
      }
    }
    part.write(line, kLine<kSize>, group, lane);
  }
  if (!queries_read) wait();
  Threads::sync();

  const bool alone = units == 1;
  const int64_t token_head = int64_t{token} * c.call.heads + kv_head * group;
  float* const of_unit = c.partial + (token_head * c.most_units + nth) * kLine<kSize>;
  const int64_t stride = int64_t{c.most_units} * kLine<kSize>;  // between heads
  for (int i = threadIdx.x; i < group * kSize; i += kThreadsOfStep) {
    const int row = i / kSize, d = i % kSize;
    Number sum;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const float* line = lines + (p * group + row) * kLine<kSize>;
      sum.fold(line[0], line[1], line[2 + d]);
    }
    if (alone) {
      write((token_head + row) * kSize + d, narrow<bfloat16>(sum.value / sum.total));
    } else {
      of_unit[row * stride + 2 + d] = sum.value;
      if (d == 0) of_unit[row * stride] = sum.maximum, of_unit[row * stride + 1] = sum.total;
    }
  }
  if (alone) return;
  __threadfence();
  Threads::sync();
  if (threadIdx.x == 0) {
    unsigned* counter = c.counters + token * c.call.kv_heads + kv_head;
    is_last =
        atomicInc(counter, static_cast<unsigned>(units - 1)) == static_cast<unsigned>(units - 1);
  }
  Threads::sync();
  if (!is_last) return;
  __threadfence();
  const float* const all = c.partial + token_head * stride;
  for (int i = threadIdx.x; i < group * kSize; i += kThreadsOfStep) {
    const int row = i / kSize, d = i % kSize;
    Number sum;
    for (int u = 0; u < units; ++u) {
      const float* line = all + row * stride + u * kLine<kSize>;
      sum.fold(__ldcg(line), __ldcg(line + 1), __ldcg(line + 2 + d));
    }
    write((token_head + row) * kSize + d, narrow<bfloat16>(sum.value / sum.total));
  }
}

}  // namespace llamaforge::cuda::paged

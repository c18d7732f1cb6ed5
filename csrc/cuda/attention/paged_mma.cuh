// The arithmetic of paged_mma.cu: 16 query rows of a warp over kKeys keys of a sequence.
//
// q·kᵀ and p·v are products m16n8k16 whose operands come straight from global memory, 16 bytes a
// lane. The order of the summed axis is free, so in q·kᵀ a lane's 8 neighbouring numbers of a head
// take the places that the instruction gives it. In p·v a lane reads 8 numbers of each of four
// values; number j of them is its column of the j-th product, so column n of product j is number
// 8n + j of the head, and a lane ends with 16 neighbouring numbers of its two rows.
#pragma once

#include <climits>

#include "cuda/attention/attention_kernels.h"
#include "cuda/attention/mma.cuh"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda::paged {

constexpr int kKeys = 64;              // keys that a warp takes at once
constexpr int kParts = 8;              // such parts in a unit
constexpr int kUnit = kParts * kKeys;  // keys of a block

// The pages of a cache, and where tokens stand in them. Values outside of the tensors count as the
// nearest ones inside.
struct Pages {
  bfloat16* pages;  // (pages_count, 2, kv_heads, page, head size)
  const int32_t *table, *sequences, *positions;
  int sequences_count, table_width, pages_count, page;

  static __device__ int inside(int value, int bound) { return max(0, min(value, bound - 1)); }
  __device__ int sequence(int token) const {
    return inside(sequences ? sequences[token] : token, sequences_count);
  }
  __device__ int position(int token) const { return inside(positions[token], table_width * page); }
  // A row of a head; heads count keys first, then values.
  __device__ bfloat16* row(int token, int head, int index, int kv_heads, int size) const {
    const int own = inside(table[sequence(token) * table_width + index / page], pages_count);
    return pages + ((int64_t{own} * 2 * kv_heads + head) * page + index % page) * size;
  }
};

// A rope_table (rows, head size / 2, 2), or none.
struct Angles {
  const float* table;
  int rows;

  // Cosines and sines of pairs i and i + 1 at `position`; NaN outside of the table. i is even.
  __device__ __forceinline__ float4 at(int position, int i, int half) const {
    if (!table) return {1.0f, 0.0f, 1.0f, 0.0f};
    constexpr int kNan = 0x7fffffff;
    if (position < 0 || position >= rows) {
      return {__int_as_float(kNan), __int_as_float(kNan), __int_as_float(kNan),
              __int_as_float(kNan)};
    }
    return *reinterpret_cast<const float4*>(table + (int64_t{position} * half + i) * 2);
  }
  static __device__ __forceinline__ void turn(float2 angle, float& first, float& second) {
    const float a = first, b = second;
    first = a * angle.x - b * angle.y;
    second = a * angle.y + b * angle.x;
  }
};

// Two neighbouring numbers of a result and the maximum and sum of their row, merged in a fixed
// order.
struct Pair {
  float maximum = -INFINITY, total = 0, x = 0, y = 0;
  __device__ __forceinline__ void fold(float other_maximum, float other_total, float2 others) {
    const float high = fmaxf(maximum, other_maximum), base = high == -INFINITY ? 0.0f : high;
    const float own = mma::exp2_approximate(maximum - base),
                other = mma::exp2_approximate(other_maximum - base);
    total = __fmaf_rn(other_total, other, __fmul_rn(total, own));
    x = __fmaf_rn(others.x, other, __fmul_rn(x, own));
    y = __fmaf_rn(others.y, other, __fmul_rn(y, own));
    maximum = high;
  }
};

// Places of a lane's words of one row of kSize: word i of block b holds numbers 32b + 8t + 2i and
// + 1.
template <int kSize>
__device__ __forceinline__ void places_of_row(int64_t row, int64_t* at) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int b = 0; b < kSize / 32; ++b) at[b] = row + b * 32 + t * 8;
}

// Reads those words. read(at, words) fills each word with the eight numbers from its place on.
template <int kSize, class Read>
__device__ __forceinline__ void read_row(int64_t row, const Read& read,
                                         uint4 (&words)[kSize / 32]) {
  int64_t at[kSize / 32];
  places_of_row<kSize>(row, at);
  read(at, words);
}

// The angles by which a lane's numbers of a head turn at one position.
template <int kSize>
struct Turn {
  static constexpr int kBlocks = kSize / 32;
  float2 angle[kBlocks / 2][8];
  __device__ __forceinline__ void read(const Angles& angles, int position) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int b = 0; b < kBlocks / 2; ++b) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const float4 two = angles.at(position, b * 32 + t * 8 + i, kSize / 2);
        angle[b][i] = {two.x, two.y};
        angle[b][i + 1] = {two.z, two.w};
      }
    }
  }
  __device__ __forceinline__ void apply(uint4 (&words)[kBlocks]) const {
#pragma unroll
    for (int b = 0; b < kBlocks / 2; ++b) {
      float first[8], second[8];
      load(reinterpret_cast<const bfloat16*>(&words[b]), first);
      load(reinterpret_cast<const bfloat16*>(&words[b + kBlocks / 2]), second);
#pragma unroll
      for (int i = 0; i < 8; ++i) Angles::turn(angle[b][i], first[i], second[i]);
      store(reinterpret_cast<bfloat16*>(&words[b]), first);
      store(reinterpret_cast<bfloat16*>(&words[b + kBlocks / 2]), second);
    }
  }
};

__device__ __forceinline__ float largest_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float sum_of_quad(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Keys begin..begin+kKeys-1 of a sequence, of which only low..high-1 are read. A lane has of each
// group j of 16 keys: of the keys 8 half + g its numbers of every block, and of the values 2t, 2t +
// 1, 2t + 8, 2t + 9 (i of 0..3) the numbers 8g..8g+7 of each 64.
struct KeyRange {
  static constexpr int kGroups = kKeys / 16;
  int begin, low, high;

  // Whether group j has keys.
  __device__ __forceinline__ bool any(int j) const {
    return begin + j * 16 < high && begin + j * 16 + 16 > low;
  }
  __device__ __forceinline__ int key_of(int j, int half) const {
    return begin + j * 16 + half * 8 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ int value_of(int j, int i) const {
    return begin + j * 16 + i / 2 * 8 + 2 * (threadIdx.x % 4) + i % 2;
  }
  // The row, within its group, that a lane reads: the nearest key that is seen.
  __device__ __forceinline__ int row_of_key(int j, int half) const {
    return min(max(key_of(j, half), low), high - 1) - begin - j * 16;
  }
  // A value that nobody sees may hold anything, and 0 times NaN is NaN.
  __device__ __forceinline__ bool sees_value(int j, int i) const {
    return value_of(j, i) >= low && value_of(j, i) < high;
  }
  __device__ __forceinline__ int row_of_value(int j, int i) const {
    return value_of(j, i) - begin - j * 16;
  }
};

// In their pages.
template <int kSize>
struct KeysInMemory : KeyRange {
  const bfloat16* rows[kGroups];  // of the first key of each group
  int64_t of_values;

  __device__ __forceinline__ KeysInMemory(const Pages& pages, int sequence, int kv_head,
                                          int kv_heads, const KeyRange& range)
      : KeyRange(range), of_values(int64_t{kv_heads} * pages.page * kSize) {
    const int32_t* table = pages.table + sequence * pages.table_width;
    const int64_t of_page = 2 * of_values;
    const int first_place = begin / pages.page, first = begin - first_place * pages.page;
    int place = first_place, within = first;
    // 16 keys from a multiple of 16 on lie in one page, which has at least 32.
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      // A group behind the last key takes the first one's page, and nobody reads its rows.
      const bool exists = begin + j * 16 < high;
      const int own = Pages::inside(table[exists ? place : first_place], pages.pages_count);
      rows[j] = pages.pages + own * of_page + (kv_head * pages.page + within) * kSize;
      within += 16;
      if (within >= pages.page) within -= pages.page, ++place;
    }
  }
  // A key and value that append() has written are there for the whole warp.
  template <class Key, class Value>
  __device__ __forceinline__ void replace(int, const Key&, const Value&) {
    __syncwarp();
  }
  // Returns a word of a key; group j must have keys.
  __device__ __forceinline__ uint4 key(int j, int half, int b) const {
    return *reinterpret_cast<const uint4*>(rows[j] + row_of_key(j, half) * kSize + b * 32 +
                                           threadIdx.x % 4 * 8);
  }
  __device__ __forceinline__ uint4 value(int j, int wide, int i) const {
    if (!sees_value(j, i)) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(rows[j] + of_values + row_of_value(j, i) * kSize +
                                           wide * 64 + threadIdx.x % 32 / 4 * 8);
  }
};

// Values in registers, for which all loads are in flight at once.
template <int kSize>
struct ValuesInRegisters : KeyRange {
  static constexpr int kWide = kSize / 64;
  uint4 values[kGroups][kWide][4];

  template <class Source>
  __device__ __forceinline__ void read_values(const Source& source) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int wide = 0; wide < kWide; ++wide) {
#pragma unroll
        for (int i = 0; i < 4; ++i) values[j][wide][i] = source.value(j, wide, i);
      }
    }
  }
  __device__ __forceinline__ void replace_value(int index, const uint4 (&value)[kWide]) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (value_of(j, i) != index) continue;
#pragma unroll
        for (int wide = 0; wide < kWide; ++wide) values[j][wide][i] = value[wide];
      }
    }
  }
  __device__ __forceinline__ uint4 value(int j, int wide, int i) const {
    return values[j][wide][i];
  }
};

// Keys in registers too.
template <int kSize>
struct KeysInRegisters : ValuesInRegisters<kSize> {
  using Range = ValuesInRegisters<kSize>;
  static constexpr int kGroups = Range::kGroups, kBlocks = kSize / 32;
  uint4 keys[kGroups][2][kBlocks];

  __device__ __forceinline__ void read(const KeysInMemory<kSize>& memory) {
    static_cast<KeyRange&>(*this) = memory;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const bool any = memory.any(j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          keys[j][half][b] = any ? memory.key(j, half, b) : make_uint4(0, 0, 0, 0);
      }
    }
    this->read_values(memory);
  }
  // Puts a key and value in the place of those at `index`, one number in the whole warp.
  __device__ __forceinline__ void replace(int index, const uint4 (&key)[kBlocks],
                                          const uint4 (&value)[Range::kWide]) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (this->key_of(j, half) != index) continue;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) keys[j][half][b] = key[b];
      }
    }
    this->replace_value(index, value);
  }
  __device__ __forceinline__ uint4 key(int j, int half, int b) const { return keys[j][half][b]; }
};

// Keys and values in shared memory, `of_row` groups to a row: the rows of keys first, then those of
// values, which also come to registers.
template <int kSize>
struct KeysInShared : ValuesInRegisters<kSize> {
  using Range = ValuesInRegisters<kSize>;
  static constexpr int kGroups = Range::kGroups, kBlocks = kSize / 32;
  bfloat16* rows;
  int pitch, of_row;  // pitch: elements

  __device__ __forceinline__ bfloat16* group(int row, int j) const {
    return rows + (row + j / of_row) * pitch + j % of_row * 16 * kSize;
  }
  __device__ __forceinline__ void read(bfloat16* from, int row_pitch, int groups_of_row,
                                       const KeyRange& range) {
    static_cast<KeyRange&>(*this) = range;
    rows = from;
    pitch = row_pitch;
    of_row = groups_of_row;
    this->read_values(InShared{*this});
  }
  // The key goes to shared memory.
  __device__ __forceinline__ void replace(int index, const uint4 (&key)[kBlocks],
                                          const uint4 (&value)[Range::kWide]) {
    const int lane = threadIdx.x % 32, j = (index - this->begin) / 16;
    bfloat16* const row = group(0, j) + (index - this->begin - j * 16) * kSize;
    if (lane < 4) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) *reinterpret_cast<uint4*>(row + b * 32 + lane * 8) = key[b];
    }
    __syncwarp();
    this->replace_value(index, value);
  }
  __device__ __forceinline__ uint4 key(int j, int half, int b) const {
    return *reinterpret_cast<const uint4*>(group(0, j) + this->row_of_key(j, half) * kSize +
                                           b * 32 + threadIdx.x % 4 * 8);
  }

 private:
  struct InShared {
    const KeysInShared& keys;
    __device__ __forceinline__ uint4 value(int j, int wide, int i) const {
      if (!keys.sees_value(j, i)) return make_uint4(0, 0, 0, 0);
      return *reinterpret_cast<const uint4*>(keys.group(kGroups / keys.of_row, j) +
                                             keys.row_of_value(j, i) * kSize + wide * 64 +
                                             threadIdx.x % 32 / 4 * 8);
    }
  };
};

// The attention of 16 rows over some keys: of rows g and g + 8 the maximum (in base 2), the sum,
// and the unnormalised output.
template <int kSize>
struct Part {
  static constexpr int kBlocks = kSize / 32, kWide = kSize / 64, kProducts = kSize / 8;
  float maximum[2], total[2];
  float sum[kProducts][4];

  __device__ __forceinline__ void clear() {
    maximum[0] = maximum[1] = -INFINITY;
    total[0] = total[1] = 0;
#pragma unroll
    for (int j = 0; j < kProducts; ++j) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
  }

  // Over the keys and values of a source (KeysInMemory, KeysInRegisters, KeysInShared); row h sees
  // firsts[h]..lasts[h] of them. Rows from `rows` on have no use.
  template <class Source>
  __device__ __forceinline__ void compute(const uint4 (&query)[2][kBlocks], const Source& source,
                                          float factor, const int (&firsts)[2],
                                          const int (&lasts)[2], int rows) {
    constexpr int kGroups = kKeys / 16;
    const int begin = source.begin, low = source.low, high = source.high;
    const int lane = threadIdx.x % 32, t = lane % 4;
    float score[kGroups][2][4] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      if (!source.any(j)) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const uint4 k = source.key(j, half, b);
          const uint4 &q = query[0][b], &r = query[1][b];
          const uint32_t even[4] = {q.x, r.x, q.y, r.y}, odd[4] = {q.z, r.z, q.w, r.w};
          mma::multiply(score[j][half], even, k.x, k.y);
          mma::multiply(score[j][half], odd, k.z, k.w);
        }
      }
    }
    const float scale = factor * 1.4426950408889634f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (8 * h >= rows) continue;
      const int from = max(low, firsts[h]), to = min(high - 1, lasts[h]);
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int key = begin + j * 16 + half * 8 + 2 * t + i;
            float& x = score[j][half][2 * h + i];
            x = key >= from && key <= to ? x * scale : -INFINITY;
            highest = fmaxf(highest, x);
          }
        }
      }
      highest = largest_of_quad(highest);
      const float base = highest == -INFINITY ? 0.0f : highest;
      float all = 0;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = score[j][half][2 * h + i];
            x = mma::exp2_approximate(x - base);
            all += x;
          }
        }
      }
      maximum[h] = highest;
      total[h] = sum_of_quad(all);
    }
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      if (!source.any(j)) continue;
      const float *a = score[j][0], *b = score[j][1];
      const uint32_t weights[4] = {mma::pack_bf16(a[0], a[1]), mma::pack_bf16(a[2], a[3]),
                                   mma::pack_bf16(b[0], b[1]), mma::pack_bf16(b[2], b[3])};
#pragma unroll
      for (int wide = 0; wide < kWide; ++wide) {
        uint4 value[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = source.value(j, wide, i);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const uint32_t v[4] = {word_of(value[0], word), word_of(value[1], word),
                                 word_of(value[2], word), word_of(value[3], word)};
          mma::multiply(sum[wide * 8 + 2 * word], weights, __byte_perm(v[0], v[1], 0x5410),
                        __byte_perm(v[2], v[3], 0x5410));
          mma::multiply(sum[wide * 8 + 2 * word + 1], weights, __byte_perm(v[0], v[1], 0x7632),
                        __byte_perm(v[2], v[3], 0x7632));
        }
      }
    }
  }

  __device__ __forceinline__ void fold(const Part& other) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float high = fmaxf(maximum[h], other.maximum[h]),
                  base = high == -INFINITY ? 0.0f : high;
      const float own = mma::exp2_approximate(maximum[h] - base),
                  its = mma::exp2_approximate(other.maximum[h] - base);
      total[h] = __fmaf_rn(other.total[h], its, __fmul_rn(total[h], own));
      maximum[h] = high;
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = sum[j][2 * h + i];
          x = __fmaf_rn(other.sum[j][2 * h + i], its, __fmul_rn(x, own));
        }
      }
    }
  }

  // Writes the first `rows` rows as lines of the maximum, the sum and the outputs.
  __device__ __forceinline__ void write(float* lines, int pitch, int rows, int lane) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (g + 8 * h >= rows) continue;
      float* line = lines + (g + 8 * h) * pitch;
      if (t == 0) line[0] = maximum[h], line[1] = total[h];
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          line[2 + j / 8 * 64 + 16 * t + 8 * i + j % 8] = sum[j][2 * h + i];
      }
    }
  }

  // Writes the result of row g + 8h.
  __device__ __forceinline__ void write_row(bfloat16* to, int h, int lane) const {
    const int t = lane % 4;
#pragma unroll
    for (int wide = 0; wide < kWide; ++wide) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = sum[wide * 8 + j][2 * h + i] / total[h];
        store(to + wide * 64 + 16 * t + 8 * i, x);
      }
    }
  }

  static __device__ __forceinline__ uint32_t word_of(const uint4& v, int word) {
    return word == 0 ? v.x : word == 1 ? v.y : word == 2 ? v.z : v.w;
  }
};

}  // namespace llamaforge::cuda::paged

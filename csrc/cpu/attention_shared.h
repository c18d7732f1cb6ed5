// Code shared by the forward and backward passes of attention: shapes, packed keys and values,
// steps of the softmax.
#pragma once

#include <omp.h>

#include <cmath>
#include <new>

#include "cpu/attention_tile.h"
#include "cpu/first_key.h"
#include "ops/checks/attention.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace llamaforge::LF_CPU_NAMESPACE {

#if defined(__AVX512BF16__)
using BFloat16Engine = PairEngine;
#else
using BFloat16Engine = FloatEngine;
#endif

constexpr float kLog2E = 1.44269504f;
constexpr int64_t kVectorsPerRow = kTile / kLanes;

struct Attention {
  int64_t batch, time, heads, kv_heads, head_size;
  float scale;
  // (batch, time): the first key that each query sees; null: every query sees the keys from 0
  const int32_t* first_key = nullptr;

  int64_t group() const { return heads / kv_heads; }
  // Elements of qkv from one token to the next.
  int64_t stride() const { return (heads + 2 * kv_heads) * head_size; }
  int64_t tiles() const { return (time + kTile - 1) / kTile; }
  int64_t rows(int64_t tile) const { return std::min(kTile, time - tile * kTile); }
  int64_t width() const { return padded_width(head_size); }
  // Returns the element offset of a head's row in qkv. Heads count queries, then keys, then values.
  int64_t at(int64_t b, int64_t tile, int64_t head) const {
    return (b * time + tile * kTile) * stride() + head * head_size;
  }
  // Returns the index of a tile's first row in a tensor (batch, heads, time).
  int64_t row(int64_t b, int64_t head, int64_t tile) const {
    return (b * heads + head) * time + tile * kTile;
  }
  int64_t all_rows() const { return batch * heads * time; }
  // Returns the element offset of a head's row in o.
  int64_t at_output(int64_t b, int64_t tile, int64_t head) const {
    return ((b * time + tile * kTile) * heads + head) * head_size;
  }
};

inline Attention attention_of(const AttentionSize& size, double scale) {
  return {size.batch,    size.time,      size.heads,
          size.kv_heads, size.head_size, static_cast<float>(scale)};
}

// 2^x for x <= 0, up to rounding; 0 for -inf.
LF_INLINE Floats exp2_below_one(Floats x) {
  x = x < broadcast(-200.0f) ? broadcast(-200.0f) : x;
  const Floats n = round_to_integer(x);
  return scale_by_power(exp2_fraction(x - n), n);
}

LF_INLINE Floats lane_numbers() {
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(i);
  return v;
}

// Replaces the scores of row `row` beyond the diagonal by `value`.
LF_INLINE Floats keep_lower(Floats x, int64_t vector, int64_t row, float value) {
  const Floats column = lane_numbers() + static_cast<float>(vector * kLanes);
  return column <= broadcast(static_cast<float>(row)) ? x : broadcast(value);
}

// Selects the scores of a tile that the softmax leaves out.
enum class Mask {
  none,
  diagonal,   // keys after the query, on the diagonal tile
  first_key,  // keys after the query, and keys before the query's first key
};

// The keys that the queries of a tile see.
struct Visible {
  int64_t query_tile, first_tile = 0;  // no key of an earlier tile is seen
  int64_t first_key[kTile] = {};       // of each query

  Visible(const Attention& shape, int64_t b, int64_t query_tile) : query_tile(query_tile) {
    if (!shape.first_key) return;
    const int32_t* first = shape.first_key + b * shape.time + query_tile * kTile;
    const int64_t rows = shape.rows(query_tile);
    for (int64_t row = 0; row < kTile; ++row) first_key[row] = first[std::min(row, rows - 1)];
    first_tile = first[0] / kTile;
  }
  Mask mask(int64_t key_tile) const {
    if (first_key[kTile - 1] > key_tile * kTile) return Mask::first_key;
    return key_tile == query_tile ? Mask::diagonal : Mask::none;
  }
};

// Replaces the scores of keys that the query in row `row` does not see by `value`.
template <Mask kMask>
LF_INLINE Floats keep_visible(Floats x, const Visible& visible, int64_t key_tile, int64_t vector,
                              int64_t row, float value) {
  if constexpr (kMask == Mask::none) return x;
  if constexpr (kMask == Mask::diagonal) return keep_lower(x, vector, row, value);
  const Floats column = lane_numbers() + static_cast<float>(vector * kLanes);
  const Floats first = broadcast(static_cast<float>(visible.first_key[row] - key_tile * kTile));
  const Floats last = broadcast(static_cast<float>((visible.query_tile - key_tile) * kTile + row));
  return (column >= first) & (column <= last) ? x : broadcast(value);
}

// put_rows and put_paired store f32 rows of a tile in the layouts that products take. `odd` is the
// row below `even`.
LF_INLINE void put_rows(float* rows, int64_t row, int64_t vector, Floats x) {
  store(rows + row * kTile + vector * kLanes, x);
}
#if defined(__AVX512BF16__)
LF_INLINE void put_rows(uint32_t* rows, int64_t row, int64_t vector, Floats x) {
  const Halves half = narrow(x);
  std::memcpy(rows + (row * kTile + vector * kLanes) / 2, &half, sizeof half);
}
LF_INLINE void put_paired(uint32_t* paired, int64_t row, int64_t vector, Floats even, Floats odd) {
  const Words words = __builtin_convertvector(narrow(even), Words) |
                      (__builtin_convertvector(narrow(odd), Words) << 16);
  std::memcpy(paired + row / 2 * kTile + vector * kLanes, &words, sizeof words);
}
#endif
LF_INLINE void put_paired(float* paired, int64_t row, int64_t vector, Floats even, Floats odd) {
  store(paired + row * kTile + vector * kLanes, even);
  store(paired + (row + 1) * kTile + vector * kLanes, odd);
}

// Scratch memory for each thread of a team. It is allocated before the team starts, because an
// exception could not leave the team. Parts begin on cache line borders, because loading a vector
// that lies across two lines costs two loads.
class ThreadScratch {
 public:
  ThreadScratch(Stream& stream, size_t bytes)
      : bytes_(padded(bytes)),
        memory_(stream, bytes_ * static_cast<size_t>(omp_get_max_threads())) {}

  static constexpr size_t padded(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

  // Hands out the calling thread's memory, from the beginning on.
  class Parts {
   public:
    explicit Parts(const ThreadScratch& scratch)
        : next_(scratch.memory_.as<char>() +
                scratch.bytes_ * static_cast<size_t>(omp_get_thread_num())) {}
    // The memory is uninitialized.
    template <class T>
    T* take(int64_t count) {
      T* part = reinterpret_cast<T*>(next_);
      next_ += padded(static_cast<size_t>(count) * sizeof(T));
      return part;
    }

   private:
    char* next_;
  };

 private:
  static constexpr size_t kLine = 64;
  const size_t bytes_;
  const Scratch memory_;
};

// Packed keys and values of every (batch, kv head, tile).
template <class Engine>
struct PackedKeys {
  using Word = typename Engine::Word;
  Word *key_transposed, *key_paired, *value_transposed, *value_paired;  // null: not needed
  int64_t tile_words;
};

template <class Engine, class T>
void pack_keys(Stream& stream, const Attention& shape, const T* qkv,
               const PackedKeys<Engine>& packed) {
  using Word = typename Engine::Word;
  const ThreadScratch scratch(stream, static_cast<size_t>(packed.tile_words) * sizeof(Word));
#pragma omp parallel
  {
    Word* rows = ThreadScratch::Parts(scratch).template take<Word>(packed.tile_words);
#pragma omp for collapse(3) schedule(static)
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
        for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
          const int64_t offset =
              ((b * shape.kv_heads + kv) * shape.tiles() + tile) * packed.tile_words;
          auto put = [&](int64_t head, Word* transposed, Word* paired) {
            pack_rows<Engine>(qkv + shape.at(b, tile, head), shape.stride(), shape.rows(tile),
                              shape.head_size, rows);
            if (transposed) transpose_rows<Engine>(rows, transposed + offset, shape.width());
            if (paired) pair_rows<Engine>(rows, paired + offset, shape.width());
          };
          put(shape.heads + kv, packed.key_transposed, packed.key_paired);
          put(shape.heads + shape.kv_heads + kv, packed.value_transposed, packed.value_paired);
        }
      }
    }
  }
}

// Writes x (rows, width), each row multiplied by factor(row), into the rows of a head.
template <class T, class Factor>
void write_scaled(const float* x, int64_t width, int64_t rows, int64_t head_size, Factor factor,
                  T* target, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row) {
    const float scale = factor(row);
    int64_t d = 0;
    for (; d + kLanes <= head_size; d += kLanes)
      store(target + row * stride + d, load(x + row * width + d) * scale);
    if (d < head_size)
      store_partial(target + row * stride + d, load(x + row * width + d) * scale, head_size - d);
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

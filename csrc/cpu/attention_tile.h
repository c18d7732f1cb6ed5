// Products of small tiles on the registers of one core: the inner loops of attention.
//
// An engine says how a product takes its operands. All of them are arrays of 4-byte words, `kPerWord` elements of the
// summed axis k to a word:
//   FloatEngine  1 float per word, multiply-add. Takes bf16 tensors too: tiles are widened when they are packed.
//   PairEngine   2 bf16 per word, vdpbf16ps: two multiply-adds per lane and instruction, sums in f32.
// Three layouts of a tile X (64 rows, d columns, both axes padded with zeros):
//   rows        [row][column / kPerWord]   left operand of X·Y
//   paired      [row / kPerWord][column]   right operand of Y·X; read by columns, the left operand of Xᵀ·Y
//   transposed  [column / kPerWord][row]   right operand of Y·Xᵀ
// For floats `rows` and `paired` are the same thing.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <utility>

#include "cpu/simd.h"

namespace llamaforge::LF_CPU_NAMESPACE {

constexpr int64_t kTile = 64;  // rows (queries or keys) of a tile

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Memory on cache line borders: a vector that lies across two lines costs two loads.
template <class T> class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t(64)))) {}
  ~AlignedBuffer() { ::operator delete(data_, std::align_val_t(64)); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

// Which part of a product is needed on the diagonal, where key j is seen by query i only if j <= i.
enum class Part {
  whole,
  lower_columns,  // c(i, j) for j <= i: scores
  lower_steps,    // sum over k <= i: scores are zero beyond
  upper_steps,    // sum over k >= i: the transpose
};

struct FloatEngine {
  using Word = float;
  static constexpr int64_t kPerWord = 1;

  static LF_INLINE Floats multiply_add(Word a, Floats b, Floats c) { return a * b + c; }
  static LF_INLINE Floats load_words(const Word* p) { return load(p); }

  static LF_INLINE void store_row(Word* p, const bfloat16* x) { store(p, load(x)); }
  static LF_INLINE void store_row(Word* p, const float* x) { store(p, load(x)); }

  static void pair(const Word* rows, Word* paired, int64_t width) {
    std::memcpy(paired, rows, static_cast<size_t>(kTile * width) * sizeof(Word));
  }
};

#if defined(__AVX512BF16__)
struct PairEngine {
  using Word = uint32_t;
  static constexpr int64_t kPerWord = 2;

  static LF_INLINE Floats load_words(const Word* p) { return load(reinterpret_cast<const float*>(p)); }
  static LF_INLINE Floats multiply_add(Word a, Floats b, Floats c) {
    const __m512i pairs = _mm512_set1_epi32(static_cast<int>(a));
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(c), reinterpret_cast<__m512bh>(pairs),
                                                     reinterpret_cast<__m512bh>(b)));
  }

  static void pair(const Word* rows, Word* paired, int64_t width) {
    const Words low_half = Words{} + 0xffffu;
    for (int64_t row = 0; row < kTile; row += 2) {
      for (int64_t column = 0; column < width; column += 2 * kLanes) {
        const Words first = reinterpret_cast<Words>(load_words(rows + (row * width + column) / 2));
        const Words second = reinterpret_cast<Words>(load_words(rows + ((row + 1) * width + column) / 2));
        const Floats even = reinterpret_cast<Floats>((first & low_half) | (second << 16));
        const Floats odd = reinterpret_cast<Floats>((first >> 16) | (second & ~low_half));
        float* target = reinterpret_cast<float*>(paired + row / 2 * width + column);
        store(target, interleave_low(even, odd));
        store(target + kLanes, interleave_high(even, odd));
      }
    }
  }
};
#endif

// Columns of a packed tile: whole vectors of pairs.
constexpr int64_t padded_width(int64_t head_size) { return round_up(head_size, 2 * 16); }

// `count` rows of head_size elements, `stride` apart, to the layout `rows`.
template <class Engine, class T>
void pack_rows(const T* source, int64_t stride, int64_t count, int64_t head_size, typename Engine::Word* rows) {
  const int64_t width = padded_width(head_size);
  for (int64_t row = 0; row < kTile; ++row, rows += width / Engine::kPerWord) {
    int64_t done = 0;
    if (row < count) {
      if constexpr (sizeof(T) * Engine::kPerWord == sizeof(typename Engine::Word)) {
        std::memcpy(rows, source + row * stride, static_cast<size_t>(head_size) * sizeof(T));
        done = head_size;
      } else {
        for (; done + kLanes <= head_size; done += kLanes) Engine::store_row(rows + done, source + row * stride + done);
        for (; done < head_size; ++done) rows[done] = to_float(source[row * stride + done]);
      }
    }
    std::memset(rows + done / Engine::kPerWord, 0, static_cast<size_t>((width - done) / Engine::kPerWord) * 4);
  }
}

// Layout `rows` to layout `transposed`.
template <class Engine>
void transpose_rows(const typename Engine::Word* rows, typename Engine::Word* transposed, int64_t width) {
  const int64_t words = width / Engine::kPerWord;
  for (int64_t row = 0; row < kTile; row += kLanes) {
    for (int64_t word = 0; word < words; word += kLanes) {
      Floats block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) block[i] = Engine::load_words(rows + (row + i) * words + word);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        std::memcpy(transposed + (word + i) * kTile + row, &block[i], sizeof(Floats));
      }
    }
  }
}

// ---- the product --------------------------------------------------------------------------------------------------

// Where a word of the left operand lies: data[row * row_stride + step * step_stride].
template <class Word> struct LeftOperand {
  const Word* data;
  int64_t row_stride, step_stride;
};

#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kBlockVectors = 4;  // 24 sums, 4 columns of b: 28 of 32 registers
#elif defined(__AVX__)
constexpr int kBlockRows = 6, kBlockVectors = 2;
#else
constexpr int kBlockRows = 4, kBlockVectors = 2;
#endif

template <class Engine, int kRows, int kVectors>
void multiply_block(LeftOperand<typename Engine::Word> a, const typename Engine::Word* b, int64_t b_stride,
                    int64_t steps, float* c, int64_t c_stride, bool accumulate) {
  Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[row][v] = accumulate ? load(c + row * c_stride + v * kLanes) : Floats{};
  }
  for (int64_t step = 0; step < steps; ++step) {
    Floats column[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) column[v] = Engine::load_words(b + step * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const auto word = a.data[row * a.row_stride + step * a.step_stride];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[row][v] = Engine::multiply_add(word, column[v], sum[row][v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + row * c_stride + v * kLanes, sum[row][v]);
  }
}

template <class Engine>
using BlockProduct = void (*)(LeftOperand<typename Engine::Word>, const typename Engine::Word*, int64_t, int64_t, float*,
                              int64_t, bool);

// [rows - 1][vectors - 1]
template <class Engine, size_t... kIndex>
constexpr std::array<BlockProduct<Engine>, sizeof...(kIndex)> block_products(std::index_sequence<kIndex...>) {
  return {&multiply_block<Engine, kIndex / kBlockVectors + 1, kIndex % kBlockVectors + 1>...};
}

// c (rows, columns) = or += a · b over `depth` elements. Columns are whole vectors; rows and depth are free, but with an
// odd depth of pairs the operands hold zeros where the last pair is half empty.
template <class Engine>
void multiply_tile(int64_t rows, int64_t columns, int64_t depth, LeftOperand<typename Engine::Word> a,
                   const typename Engine::Word* b, int64_t b_stride, float* c, int64_t c_stride, bool accumulate,
                   Part part = Part::whole) {
  static constexpr auto products =
      block_products<Engine>(std::make_index_sequence<static_cast<size_t>(kBlockRows* kBlockVectors)>());
  for (int64_t row = 0; row < rows; row += kBlockRows) {
    const int64_t block_rows = std::min<int64_t>(kBlockRows, rows - row);
    const int64_t last = row + block_rows;
    const int64_t first_step = part == Part::upper_steps ? row / Engine::kPerWord : 0;
    const int64_t end = part == Part::lower_steps ? std::min(depth, last) : depth;
    const int64_t steps = (end + Engine::kPerWord - 1) / Engine::kPerWord - first_step;
    const int64_t used = part == Part::lower_columns ? std::min(columns, round_up(last, kLanes)) : columns;
    for (int64_t column = 0; column < used; column += kBlockVectors * kLanes) {
      const int64_t vectors = std::min<int64_t>(kBlockVectors, (used - column) / kLanes);
      products[static_cast<size_t>((block_rows - 1) * kBlockVectors + vectors - 1)](
          {a.data + row * a.row_stride + first_step * a.step_stride, a.row_stride, a.step_stride},
          b + first_step * b_stride + column, b_stride, steps, c + row * c_stride + column, c_stride, accumulate);
    }
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

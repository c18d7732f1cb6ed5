// Tiles of attention: packing, and products that leave out elements above the diagonal.
//
// A tile X (64 rows, d columns, both axes padded with zeros) has three layouts for the engines of
// tile.h:
//   rows        [row][column / kPerWord]   left operand of X·Y
//   paired      [row / kPerWord][column]   right operand of Y·X; by columns, left operand of Xᵀ·Y
//   transposed  [column / kPerWord][row]   right operand of Y·Xᵀ
// For floats, `rows` and `paired` are identical.
#pragma once

#include "cpu/tile.h"

namespace llamaforge::LF_CPU_NAMESPACE {

constexpr int64_t kTile = 64;  // rows (queries or keys) of a tile

// Selects the part of a product that is needed on the diagonal, where query i sees key j only if
// j <= i.
enum class Part {
  whole,
  lower_columns,  // c(i, j) for j <= i: scores
  lower_steps,    // sum over k <= i: scores are zero beyond i
  upper_steps,    // sum over k >= i: the transpose
};

// Columns of a packed tile: whole vectors of pairs.
constexpr int64_t padded_width(int64_t head_size) { return round_up(head_size, 2 * 16); }

// Packs `count` rows of head_size elements, `stride` apart, into the layout `rows`.
template <class Engine, class T>
void pack_rows(const T* source, int64_t stride, int64_t count, int64_t head_size,
               typename Engine::Word* rows) {
  const int64_t width = padded_width(head_size);
  for (int64_t row = 0; row < kTile; ++row, rows += width / Engine::kPerWord) {
    int64_t done = 0;
    if (row < count) {
      if constexpr (sizeof(T) * Engine::kPerWord == sizeof(typename Engine::Word)) {
        std::memcpy(rows, source + row * stride, static_cast<size_t>(head_size) * sizeof(T));
        done = head_size;
      } else {
        for (; done + kLanes <= head_size; done += kLanes)
          Engine::store_row(rows + done, source + row * stride + done);
        for (; done < head_size; ++done) rows[done] = to_float(source[row * stride + done]);
      }
    }
    // Sizes are in bytes, because an odd number of bf16 elements ends in the middle of a word.
    const auto bytes_of = [](int64_t elements) {
      return static_cast<size_t>(elements) * sizeof(*rows) / static_cast<size_t>(Engine::kPerWord);
    };
    std::memset(reinterpret_cast<char*>(rows) + bytes_of(done), 0, bytes_of(width - done));
  }
}

// Converts layout `rows` to layout `paired`.
template <class Engine>
void pair_rows(const typename Engine::Word* rows, typename Engine::Word* paired, int64_t width) {
  if constexpr (Engine::kPerWord == 1) {
    std::memcpy(paired, rows, static_cast<size_t>(kTile * width) * sizeof(*rows));
  } else {
    const int64_t words = width / Engine::kPerWord;
    for (int64_t row = 0; row < kTile; row += 2) {
      for (int64_t word = 0; word < words; word += kLanes) {
        Engine::pair_vector(rows + row * words + word, rows + (row + 1) * words + word,
                            paired + row / 2 * width + 2 * word);
      }
    }
  }
}

// Converts layout `rows` to layout `transposed`.
template <class Engine>
void transpose_rows(const typename Engine::Word* rows, typename Engine::Word* transposed,
                    int64_t width) {
  const int64_t words = width / Engine::kPerWord;
  for (int64_t row = 0; row < kTile; row += kLanes) {
    for (int64_t word = 0; word < words; word += kLanes) {
      Floats block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        block[i] = Engine::load_words(rows + (row + i) * words + word);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        std::memcpy(transposed + (word + i) * kTile + row, &block[i], sizeof(Floats));
      }
    }
  }
}

// Computes c (rows, columns) = a · b, or += a · b, over `depth` elements. Columns are whole
// vectors. Rows and depth are free, but if the depth is odd and elements come in pairs, the
// operands hold zeros in the empty half of the last pair.
template <class Engine>
void multiply_tile(int64_t rows, int64_t columns, int64_t depth,
                   LeftOperand<typename Engine::Word> a, const typename Engine::Word* b,
                   int64_t b_stride, float* c, int64_t c_stride, bool accumulate,
                   Part part = Part::whole) {
  static constexpr auto products = block_products<Engine>(
      std::make_index_sequence<static_cast<size_t>(kBlockRows * kBlockVectors)>());
  for (int64_t row = 0; row < rows; row += kBlockRows) {
    const int64_t block_rows = std::min<int64_t>(kBlockRows, rows - row);
    const int64_t last = row + block_rows;
    const int64_t first_step = part == Part::upper_steps ? row / Engine::kPerWord : 0;
    const int64_t end = part == Part::lower_steps ? std::min(depth, last) : depth;
    const int64_t steps = (end + Engine::kPerWord - 1) / Engine::kPerWord - first_step;
    const int64_t used =
        part == Part::lower_columns ? std::min(columns, round_up(last, kLanes)) : columns;
    for (int64_t column = 0; column < used; column += kBlockVectors * kLanes) {
      const int64_t vectors = std::min<int64_t>(kBlockVectors, (used - column) / kLanes);
      products[static_cast<size_t>((block_rows - 1) * kBlockVectors + vectors - 1)](
          a.data + row * a.row_stride + first_step * a.step_stride, a.row_stride, a.step_stride,
          b + first_step * b_stride + column, b_stride, steps, c + row * c_stride + column,
          c_stride, accumulate, {});
    }
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

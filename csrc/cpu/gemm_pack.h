// Copies of matrices' parts in f32, in the order in which the products of gemm_packed.cpp read
// them.
#pragma once

#include <algorithm>

#include "cpu/kernel.h"
#include "cpu/tile.h"

namespace llamaforge::LF_CPU_NAMESPACE {

constexpr int64_t kPanel = kBlockVectors * kLanes;  // columns of b
constexpr int64_t kDepth =
    kLanes == 16 ? 128 : 256;  // steps of k: a panel of them stays in the first-level cache
constexpr int64_t kRowsPadding =
    kLanes;  // after each block of turned rows: whole vectors are stored
constexpr int64_t kRowsBlock = kBlockRows * kDepth + kRowsPadding;  // a block of rows of a

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// A stored matrix: element (i, j) at data[i * stride + j].
template <class T>
struct Stored {
  const T* data;
  int64_t stride;
  Stored at(int64_t i, int64_t j) const { return {data + i * stride + j, stride}; }
};

// out[i * out_stride + j] = from(i, j), widened.
template <class T>
void copy_rows(Stored<T> from, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = from.data + i * from.stride;
    float* to = out + i * out_stride;
    for_each_vector(0, columns, [&](int64_t j, auto v) { v.store(to + j, v.load(row + j)); });
  }
}

// Copies rows of whole panels into panels that lie rows * kPanel apart. The rows lie far apart in
// memory, so later rows are prefetched while earlier ones are copied.
template <class T>
void copy_panels(Stored<T> from, int64_t rows, int64_t panels, float* out) {
  constexpr int64_t kAhead = 16;
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = from.data + i * from.stride;
    float* to = out + i * kPanel;
    for (int64_t panel = 0; panel < panels; ++panel, row += kPanel, to += rows * kPanel) {
      fetch(row + kAhead * from.stride);
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVectors; ++v) store(to + v * kLanes, load(row + v * kLanes));
    }
  }
}

// out[j * out_stride + i] = from(i, j), widened.
template <class T>
void copy_turned(Stored<T> from, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const int64_t tall = std::min<int64_t>(kLanes, rows - i);
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t wide = std::min<int64_t>(kLanes, columns - j);
      const T* corner = from.data + i * from.stride + j;
      float* to = out + j * out_stride + i;
      Floats block[kLanes];
      if (tall == kLanes && wide == kLanes) {
#pragma GCC unroll 16
        for (int row = 0; row < kLanes; ++row) block[row] = load(corner + row * from.stride);
        transpose(block);
#pragma GCC unroll 16
        for (int row = 0; row < kLanes; ++row) store(to + row * out_stride, block[row]);
      } else {
        for (int64_t row = 0; row < kLanes; ++row) {
          block[row] = row < tall ? load_partial(corner + row * from.stride, wide) : Floats{};
        }
        transpose(block);
        for (int64_t row = 0; row < wide; ++row)
          store_partial(to + row * out_stride, block[row], tall);
      }
    }
  }
}

// Fetches a stored matrix into the cache little by little, while something else is computed.
class FetchAhead {
 public:
  template <class T>
  FetchAhead(Stored<T> from, int64_t rows, int64_t columns)
      : row_(reinterpret_cast<const char*>(from.data)),
        stride_(from.stride * static_cast<int64_t>(sizeof(T))),
        row_bytes_(columns * static_cast<int64_t>(sizeof(T))),
        rows_(rows) {}
  int64_t lines() const { return rows_ * divide_up(row_bytes_, kLine); }
  void some(int64_t lines) {
    for (; lines > 0 && rows_ > 0; --lines) {
      fetch(row_ + done_);
      done_ += kLine;
      if (done_ < row_bytes_) continue;
      done_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_;
  int64_t stride_, row_bytes_, rows_, done_ = 0;
};

// Columns of `from` become the rows of blocks: out[block][step * kBlockRows + row]. Whole vectors
// are stored where they fit; the next step overwrites the numbers beyond a block's row.
template <class T>
void copy_steps(Stored<T> from, int64_t steps, int64_t rows, float* out) {
  static_assert(kLanes >= kBlockRows);
  constexpr int64_t kAtOnce = 32;
  for (int64_t first = 0; first < steps; first += kAtOnce) {
    const int64_t last = std::min(steps, first + kAtOnce);
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      float* to = out + r / kBlockRows * kRowsBlock;
      const int64_t tall = std::min<int64_t>(kBlockRows, rows - r);
      if (rows - r >= kLanes) {
        for (int64_t step = first; step < last; ++step) {
          store(to + step * kBlockRows, load(from.data + step * from.stride + r));
        }
      } else {
        for (int64_t step = first; step < last; ++step) {
          store(to + step * kBlockRows, load_partial(from.data + step * from.stride + r, tall));
        }
      }
    }
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

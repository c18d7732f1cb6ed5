// y = x with its axes in another order: axis i of y is axis permutation[i] of x. The kernel moves
// bits, so it takes any dtype.
// The kernel touches each tensor once, and is bound by memory as long as it touches both sides a
// cache line at a time. If the last axis changes, it therefore walks x and y in tiles over the axis
// that is contiguous in x and the axis that is contiguous in y.

#include "ops/plans/permute.h"
#include "cpu/kernel.h"
#include "ops/checks/indexing.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

constexpr int64_t kTile = 32;

// Moves whole rows, because the last axis of x is also the last axis of y.
template <class Bits>
void move_rows(const Bits* x, Bits* y, PermutedAxes axes) {
  const int64_t length = take_row(axes);
  parallel_for(count_of(axes), length, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t from, to;
      locate(axes, row, from, to);
      std::memcpy(y + to, x + from, static_cast<size_t>(length) * sizeof(Bits));
    }
  });
}

template <class Bits>
void transpose_tiles(const Bits* x, Bits* y, const Transposition& plan) {
  const PermutedAxes& outer = plan.outer;
  const PermutedAxis &row = plan.row, &column = plan.column;
  const int64_t tiles_down = (row.size + kTile - 1) / kTile;
  const int64_t tiles_across = (column.size + kTile - 1) / kTile;
  parallel_for(count_of(outer) * tiles_down * tiles_across, kTile * kTile,
               [&](int64_t begin, int64_t end) {
                 // Tiles go through a buffer, because rows whose distance is a power of two would
                 // push each other out of the cache.
                 Bits buffer[kTile][kTile + 1];
                 for (int64_t tile = begin; tile < end; ++tile) {
                   int64_t x_offset, y_offset;
                   locate(outer, tile / tiles_across / tiles_down, x_offset, y_offset);
                   const int64_t r = tile / tiles_across % tiles_down * kTile;
                   const int64_t c = tile % tiles_across * kTile;
                   const int64_t rows = std::min(kTile, row.size - r);
                   const int64_t columns = std::min(kTile, column.size - c);
                   const Bits* from = x + x_offset + r + c * column.from;
                   Bits* to = y + y_offset + r * row.to + c;
                   for (int64_t j = 0; j < columns; ++j) {
                     std::memcpy(buffer[j], from + j * column.from,
                                 static_cast<size_t>(rows) * sizeof(Bits));
                   }
                   for (int64_t i = 0; i < rows; ++i) {
                     for (int64_t j = 0; j < columns; ++j) to[i * row.to + j] = buffer[j][i];
                   }
                 }
               });
}

template <class Bits>
void move(const In& x, Out& y, const PermutedAxes& axes) {
  const Bits* from = static_cast<const Bits*>(x.raw());
  Bits* to = static_cast<Bits*>(y.raw());
  moves_rows(axes) ? move_rows(from, to, axes)
                   : transpose_tiles(from, to, split_transposition(axes));
}

}  // namespace

void permute(Stream&, In x, Out y, IntList permutation) {
  check_permute(x, y, permutation);
  const PermutedAxes axes = plan_permutation(x.shape, permutation);
  size_of(x.dtype) == 2 ? move<uint16_t>(x, y, axes) : move<uint32_t>(x, y, axes);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// y = x with its axes in another order: axis i of y is axis permutation[i] of x. Moves bits, so any dtype.
// Reads and writes each tensor once: bound by memory, as long as both sides are touched a cache line at a time. So if
// the last axis changes, x and y are walked in tiles over the two axes that are contiguous in the one or the other.

#include <vector>

#include "cpu/kernel.h"
#include "ops/checks/indexing.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

constexpr int64_t kTile = 32;

struct Axis {
  int64_t size;
  int64_t from;  // stride in x
  int64_t to;    // stride in y
};

// The axes in the order of y, those of size 1 dropped, those that stay neighbours joined.
std::vector<Axis> plan_permutation(const Shape& x, const IntList& permutation) {
  std::vector<int64_t> strides(x.size());
  int64_t step = 1;
  for (size_t axis = x.size(); axis-- > 0;) {
    strides[axis] = step;
    step *= x[axis];
  }
  std::vector<Axis> axes;
  for (int64_t source : permutation) {
    const int64_t size = x[source];
    if (size == 1) continue;
    if (!axes.empty() && axes.back().from == size * strides[source]) {
      axes.back() = {axes.back().size * size, strides[source], 0};
    } else {
      axes.push_back({size, strides[source], 0});
    }
  }
  step = 1;
  for (size_t axis = axes.size(); axis-- > 0;) {
    axes[axis].to = step;
    step *= axes[axis].size;
  }
  return axes;
}

struct Offsets {
  int64_t from = 0, to = 0;
};

Offsets locate(const std::vector<Axis>& axes, int64_t index) {
  Offsets result;
  for (size_t axis = axes.size(); axis-- > 0;) {
    const int64_t position = index % axes[axis].size;
    index /= axes[axis].size;
    result.from += position * axes[axis].from;
    result.to += position * axes[axis].to;
  }
  return result;
}

int64_t count_of(const std::vector<Axis>& axes) {
  int64_t count = 1;
  for (const Axis& axis : axes) count *= axis.size;
  return count;
}

// The last axis of x is the last of y: rows move as they are.
template <class Bits>
void move_rows(const Bits* x, Bits* y, std::vector<Axis> axes) {
  const int64_t length = axes.empty() ? 1 : axes.back().size;
  if (!axes.empty()) axes.pop_back();
  parallel_for(count_of(axes), length, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Offsets at = locate(axes, row);
      std::memcpy(y + at.to, x + at.from, static_cast<size_t>(length) * sizeof(Bits));
    }
  });
}

// `row`: contiguous in x, `column`: contiguous in y; all other axes count the matrices to transpose.
template <class Bits>
void transpose_tiles(const Bits* x, Bits* y, std::vector<Axis> axes) {
  const Axis column = axes.back();
  axes.pop_back();
  size_t contiguous = 0;
  while (axes[contiguous].from != 1) ++contiguous;
  const Axis row = axes[contiguous];
  axes.erase(axes.begin() + static_cast<std::ptrdiff_t>(contiguous));

  const int64_t tiles_down = (row.size + kTile - 1) / kTile;
  const int64_t tiles_across = (column.size + kTile - 1) / kTile;
  parallel_for(count_of(axes) * tiles_down * tiles_across, kTile * kTile, [&](int64_t begin, int64_t end) {
    // Through a buffer, because rows whose distance is a power of two would push each other out of the cache.
    Bits buffer[kTile][kTile + 1];
    for (int64_t tile = begin; tile < end; ++tile) {
      const Offsets at = locate(axes, tile / tiles_across / tiles_down);
      const int64_t r = tile / tiles_across % tiles_down * kTile;
      const int64_t c = tile % tiles_across * kTile;
      const int64_t rows = std::min(kTile, row.size - r);
      const int64_t columns = std::min(kTile, column.size - c);
      const Bits* from = x + at.from + r + c * column.from;
      Bits* to = y + at.to + r * row.to + c;
      for (int64_t j = 0; j < columns; ++j) {
        std::memcpy(buffer[j], from + j * column.from, static_cast<size_t>(rows) * sizeof(Bits));
      }
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) to[i * row.to + j] = buffer[j][i];
      }
    }
  });
}

template <class Bits>
void move(const In& x, Out& y, const std::vector<Axis>& axes) {
  const Bits* from = static_cast<const Bits*>(x.raw());
  Bits* to = static_cast<Bits*>(y.raw());
  axes.empty() || axes.back().from == 1 ? move_rows(from, to, axes) : transpose_tiles(from, to, axes);
}

}  // namespace

void permute(Stream&, In x, Out y, IntList permutation) {
  check_permute(x, y, permutation);
  const std::vector<Axis> axes = plan_permutation(x.shape, permutation);
  size_of(x.dtype) == 2 ? move<uint16_t>(x, y, axes) : move<uint32_t>(x, y, axes);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

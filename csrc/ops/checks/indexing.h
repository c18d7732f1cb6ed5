// gather, scatter_add, slice, slice_write, permute, where.
#pragma once

#include <vector>

#include "ops/checks/common.h"

namespace llamaforge {

// The kernel checks the values of `index`.
static inline void check_index(const Tensor& whole, const Tensor& index, int64_t axis) {
  check_dtype("index", index, DType::i32);
  LF_CHECK(axis >= 0 && axis < whole.rank(), "axis {} of {}", axis, to_string(whole.shape));
  LF_CHECK(index.rank() == whole.rank(), "index {} for {}", to_string(index.shape),
           to_string(whole.shape));
  for (int64_t other = 0; other < whole.rank(); ++other) {
    LF_CHECK(other == axis || index.dim(other) <= whole.dim(other),
             "index {} is longer than {} along axis {}", to_string(index.shape),
             to_string(whole.shape), other);
  }
}

static inline void check_gather(const Tensor& x, const Tensor& index, const Tensor& y,
                                int64_t axis) {
  check_wide("x", x);
  check_shape("y", y, index.shape);
  check_dtype("y", y, x.dtype);
  check_index(x, index, axis);
}

// dx f32 for dy bf16 keeps the precision of many additions; otherwise both have one dtype.
static inline void check_scatter_add(const Tensor& dy, const Tensor& index, const Tensor& dx,
                                     int64_t axis) {
  check_shape("dy", dy, index.shape);
  check_float("dy", dy);
  if (dx.dtype != DType::f32) check_dtype("dx", dx, dy.dtype);
  check_index(dx, index, axis);
}

static inline void check_block(const Tensor& whole, const Tensor& block, const IntList& starts) {
  check_dtype("the block", block, whole.dtype);
  LF_CHECK(block.rank() == whole.rank() && starts.size() == whole.shape.size(),
           "block {} at {} of {}", to_string(block.shape), to_string(starts),
           to_string(whole.shape));
  for (size_t axis = 0; axis < starts.size(); ++axis) {
    LF_CHECK(starts[axis] >= 0 && block.shape[axis] <= whole.shape[axis] &&
                 starts[axis] <= whole.shape[axis] - block.shape[axis],
             "block {} at {} leaves {}", to_string(block.shape), to_string(starts),
             to_string(whole.shape));
  }
}

static inline void check_permute(const Tensor& x, const Tensor& y, const IntList& permutation) {
  check_wide("x", x);
  LF_CHECK(permutation.size() == x.shape.size(), "{} axes for x {}", permutation.size(),
           to_string(x.shape));
  std::vector<bool> seen(permutation.size());
  Shape expected;
  for (int64_t axis : permutation) {
    LF_CHECK(axis >= 0 && axis < x.rank() && !seen[static_cast<size_t>(axis)],
             "axis {} of x {} is wrong or named twice", axis, to_string(x.shape));
    seen[static_cast<size_t>(axis)] = true;
    expected.push_back(x.shape[static_cast<size_t>(axis)]);
  }
  check_shape("y", y, expected);
  check_dtype("y", y, x.dtype);
}

// Each device's plan checks that the shapes broadcast.
static inline void check_where(const Tensor& condition, const Tensor& a, const Tensor& b,
                               const Tensor& y) {
  check_wide("y", y);
  check_dtype("condition", condition, DType::i32);
  check_dtype("a", a, y.dtype);
  check_dtype("b", b, y.dtype);
}

}  // namespace llamaforge

// Several tensors that broadcast to one shape, in the form that the kernels of all devices walk.
//
// Axes of size 1 are dropped and axes that all operands traverse alike are joined, so that few axes
// are left: tensors of one shape are one row, a row added to a matrix is two axes. Tensors are
// contiguous, so along the last remaining axis every operand advances by 1 or stands still (0), and
// kernels need no other strides.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "ops/checks/common.h"

namespace llamaforge {

// A plan for N operands. Size is the type of an axis's size. A GPU divides 32 bits much faster;
// axes that would grow longer are then not joined.
template <int N, class Size = int64_t>
struct BroadcastPlan {
  int axes = 0;  // at least 1
  int64_t numel = 1;
  Size sizes[kMostAxes];          // outermost first
  int64_t strides[kMostAxes][N];  // of each operand, per axis
  bool advances[N];               // does the operand move along the last axis?
};

// Throws ERR_SHAPE if an operand does not broadcast to `shape`; the error names the operand.
template <int N, class Size = int64_t>
static inline BroadcastPlan<N, Size> plan_broadcast(const Shape& shape,
                                                    const std::array<const Tensor*, N>& operands) {
  const size_t rank = shape.size();
  check_axes(shape);
  int64_t strides[kMostAxes][N] = {};
  for (int k = 0; k < N; ++k) {
    const Shape& own = operands[k]->shape;
    LF_CHECK(own.size() <= rank, "operand {} of shape {} does not broadcast to {}", k,
             to_string(own), to_string(shape));
    const size_t lead = rank - own.size();
    int64_t step = 1;
    for (size_t axis = rank; axis-- > 0;) {
      const int64_t size = axis < lead ? 1 : own[axis - lead];
      LF_CHECK(size == 1 || size == shape[axis], "operand {} of shape {} does not broadcast to {}",
               k, to_string(own), to_string(shape));
      strides[axis][k] = size == 1 ? 0 : step;
      step *= size;
    }
  }

  const int64_t longest = std::numeric_limits<Size>::max();
  BroadcastPlan<N, Size> plan;
  const auto joins = [&](size_t axis) {
    if (plan.axes == 0 || plan.sizes[plan.axes - 1] > longest / shape[axis]) return false;
    for (int k = 0; k < N; ++k) {
      if (plan.strides[plan.axes - 1][k] != strides[axis][k] * shape[axis]) return false;
    }
    return true;
  };
  for (size_t axis = 0; axis < rank; ++axis) {
    if (shape[axis] == 1) continue;
    LF_CHECK(shape[axis] <= longest, "axis {} of {} is too long", axis, to_string(shape));
    plan.numel *= shape[axis];
    if (joins(axis)) {
      plan.sizes[plan.axes - 1] *= static_cast<Size>(shape[axis]);
    } else {
      plan.sizes[plan.axes++] = static_cast<Size>(shape[axis]);
    }
    for (int k = 0; k < N; ++k) plan.strides[plan.axes - 1][k] = strides[axis][k];
  }
  if (plan.axes == 0) {
    plan.axes = 1;
    plan.sizes[0] = 1;
    for (int k = 0; k < N; ++k) plan.strides[0][k] = 0;
  }
  for (int k = 0; k < N; ++k) plan.advances[k] = plan.strides[plan.axes - 1][k] != 0;
  return plan;
}

}  // namespace llamaforge

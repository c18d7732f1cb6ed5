// Walking several tensors that broadcast to one shape, row by row.
//
// Axes of size 1 are dropped and axes that all operands traverse alike are joined, so that what is left is short:
// tensors of one shape are one row, a row added to a matrix is two axes. Tensors are contiguous, so along the last axis
// left every operand advances by 1 or stands still (0): kernels need no other strides.
#pragma once

#include <array>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/parallel.h"
#include "ops/checks/common.h"

namespace llamaforge::LF_CPU_NAMESPACE {

template <size_t N>
struct BroadcastPlan {
  std::vector<int64_t> sizes;                   // outermost first; never empty
  std::vector<std::array<int64_t, N>> strides;  // of each operand, per axis
  std::array<bool, N> advances;                 // does the operand move along the last axis?

  int64_t row_length() const { return sizes.back(); }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : sizes) count *= size;
    return count;
  }
};

// Throws ERR_SHAPE, naming the operand, if it does not broadcast to `shape`.
template <size_t N>
BroadcastPlan<N> plan_broadcast(const Shape& shape, const std::array<const Tensor*, N>& operands) {
  const size_t rank = shape.size();
  check_axes(shape);
  std::vector<std::array<int64_t, N>> strides(rank);
  for (size_t k = 0; k < N; ++k) {
    const Shape& own = operands[k]->shape;
    LF_CHECK(own.size() <= rank, "operand {} of shape {} does not broadcast to {}", k, to_string(own),
             to_string(shape));
    const size_t lead = rank - own.size();
    int64_t step = 1;
    for (size_t axis = rank; axis-- > 0;) {
      const int64_t size = axis < lead ? 1 : own[axis - lead];
      LF_CHECK(size == 1 || size == shape[axis], "operand {} of shape {} does not broadcast to {}", k, to_string(own),
               to_string(shape));
      strides[axis][k] = size == 1 ? 0 : step;
      step *= size;
    }
  }

  BroadcastPlan<N> plan;
  for (size_t axis = 0; axis < rank; ++axis) {
    if (shape[axis] == 1) continue;
    bool joins = !plan.sizes.empty();
    for (size_t k = 0; joins && k < N; ++k) joins = plan.strides.back()[k] == strides[axis][k] * shape[axis];
    if (joins) {
      plan.sizes.back() *= shape[axis];
      plan.strides.back() = strides[axis];
    } else {
      plan.sizes.push_back(shape[axis]);
      plan.strides.push_back(strides[axis]);
    }
  }
  if (plan.sizes.empty()) {
    plan.sizes.push_back(1);
    plan.strides.push_back({});
  }
  for (size_t k = 0; k < N; ++k) plan.advances[k] = plan.strides.back()[k] != 0;
  return plan;
}

// row(position, offsets, length): `length` elements of the output from `position` on, and where each operand starts.
// Threads share the output evenly, whatever the shape: a row may reach a body in parts.
template <size_t N, class Row>
void for_each_row(const BroadcastPlan<N>& plan, const Row& row) {
  const size_t last = plan.sizes.size() - 1;
  const int64_t length = plan.row_length();
  parallel_for(plan.numel(), 1, [&](int64_t begin, int64_t end) {
    std::array<int64_t, kMostAxes> index{};  // fixed: an exception could not leave the team
    std::array<int64_t, N> start{};          // of the current row
    int64_t rest = begin / length;
    for (size_t axis = last; axis-- > 0;) {
      index[axis] = rest % plan.sizes[axis];
      rest /= plan.sizes[axis];
      for (size_t k = 0; k < N; ++k) start[k] += index[axis] * plan.strides[axis][k];
    }
    int64_t column = begin % length;
    for (int64_t position = begin; position < end;) {
      const int64_t count = std::min(length - column, end - position);
      std::array<int64_t, N> offsets;
      for (size_t k = 0; k < N; ++k) offsets[k] = start[k] + (plan.advances[k] ? column : 0);
      row(position, offsets, count);
      position += count;
      column = 0;
      for (size_t axis = last; axis-- > 0;) {
        for (size_t k = 0; k < N; ++k) start[k] += plan.strides[axis][k];
        if (++index[axis] < plan.sizes[axis]) break;
        for (size_t k = 0; k < N; ++k) start[k] -= index[axis] * plan.strides[axis][k];
        index[axis] = 0;
      }
    }
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

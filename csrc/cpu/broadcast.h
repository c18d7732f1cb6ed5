// Walks several tensors that broadcast to one shape, row by row. The plan is in
// csrc/ops/plans/broadcast.h.
#pragma once

#include <array>

#include "cpu/cpu_ops.h"
#include "cpu/parallel.h"
#include "ops/plans/broadcast.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Calls row(position, offsets, length) for `length` elements of the output from `position` on;
// `offsets` says where each operand starts. Threads share the output evenly whatever the shape is,
// so the body may get a row in parts.
template <int N, class Row>
void for_each_row(const BroadcastPlan<N>& plan, const Row& row) {
  const int last = plan.axes - 1;
  const int64_t length = plan.sizes[last];
  parallel_for(plan.numel, 1, [&](int64_t begin, int64_t end) {
    std::array<int64_t, kMostAxes> index{};  // fixed size: an exception could not leave the team
    std::array<int64_t, N> start{};          // of the current row
    int64_t rest = begin / length;
    for (int axis = last; axis-- > 0;) {
      index[axis] = rest % plan.sizes[axis];
      rest /= plan.sizes[axis];
      for (int k = 0; k < N; ++k) start[k] += index[axis] * plan.strides[axis][k];
    }
    int64_t column = begin % length;
    for (int64_t position = begin; position < end;) {
      const int64_t count = std::min(length - column, end - position);
      std::array<int64_t, N> offsets;
      for (int k = 0; k < N; ++k) offsets[k] = start[k] + (plan.advances[k] ? column : 0);
      row(position, offsets, count);
      position += count;
      column = 0;
      for (int axis = last; axis-- > 0;) {
        for (int k = 0; k < N; ++k) start[k] += plan.strides[axis][k];
        if (++index[axis] < plan.sizes[axis]) break;
        for (int k = 0; k < N; ++k) start[k] -= index[axis] * plan.strides[axis][k];
        index[axis] = 0;
      }
    }
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

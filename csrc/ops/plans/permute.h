// A permutation as the kernels of all devices walk it. If the last axis of x stays the last, whole
// rows move. If it does not, matrices are transposed: their rows are contiguous in x, their columns
// in y.
#pragma once

#include <cstdint>

#include "ops/checks/common.h"
#include "ops/plans/host_device.h"

namespace llamaforge {

struct PermutedAxis {
  int64_t size;
  int64_t from;  // stride in x
  int64_t to;    // stride in y
};

struct PermutedAxes {
  int count = 0;
  PermutedAxis axis[kMostAxes];  // in the order of y
};

struct Transposition {
  PermutedAxes outer;        // counts the matrices
  PermutedAxis row, column;  // contiguous in x, and in y
};

static inline int64_t count_of(const PermutedAxes& axes) {
  int64_t product = 1;
  for (int i = 0; i < axes.count; ++i) product *= axes.axis[i].size;
  return product;
}

// Index has 32 bits where they suffice, because a GPU divides 32 bits much faster.
template <class Index>
LF_HOST_DEVICE static inline void locate(const PermutedAxes& axes, Index index, int64_t& from,
                                         int64_t& to) {
  from = to = 0;
  for (int i = axes.count; i-- > 0;) {
    const Index size = static_cast<Index>(axes.axis[i].size), next = index / size;
    const int64_t position = index - next * size;
    index = next;
    from += position * axes.axis[i].from;
    to += position * axes.axis[i].to;
  }
}

// Returns the axes in the order of y. Axes of size 1 are dropped, and axes that stay neighbours are
// joined.
static inline PermutedAxes plan_permutation(const Shape& x, const IntList& permutation) {
  check_axes(x);
  int64_t strides[kMostAxes];
  int64_t step = 1;
  for (size_t axis = x.size(); axis-- > 0;) {
    strides[axis] = step;
    step *= x[axis];
  }
  PermutedAxes plan;
  for (int64_t source : permutation) {
    const int64_t size = x[static_cast<size_t>(source)], stride = strides[source];
    if (size == 1) continue;
    if (plan.count > 0 && plan.axis[plan.count - 1].from == size * stride) {
      plan.axis[plan.count - 1] = {plan.axis[plan.count - 1].size * size, stride, 0};
    } else {
      plan.axis[plan.count++] = {size, stride, 0};
    }
  }
  step = 1;
  for (int i = plan.count; i-- > 0;) {
    plan.axis[i].to = step;
    step *= plan.axis[i].size;
  }
  return plan;
}

static inline bool moves_rows(const PermutedAxes& axes) {
  return axes.count == 0 || axes.axis[axes.count - 1].from == 1;
}

// Takes the last axis away, and returns its size: the length of a row.
static inline int64_t take_row(PermutedAxes& axes) {
  return axes.count == 0 ? 1 : axes.axis[--axes.count].size;
}

static inline Transposition split_transposition(const PermutedAxes& axes) {
  Transposition result;
  for (int i = 0; i + 1 < axes.count; ++i) {
    if (axes.axis[i].from == 1) {
      result.row = axes.axis[i];
    } else {
      result.outer.axis[result.outer.count++] = axes.axis[i];
    }
  }
  result.column = axes.axis[axes.count - 1];
  return result;
}

}  // namespace llamaforge

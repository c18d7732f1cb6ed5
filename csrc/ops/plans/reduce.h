// A reduction as the kernels of all devices walk it. Adjacent axes that are all kept or all reduced
// are joined, so that kept and reduced axes alternate; the last one stands apart, because it
// decides how a kernel reads.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/checks/common.h"
#include "ops/plans/host_device.h"

namespace llamaforge {

// Where rows start: a mixed-radix counter over axes, by their sizes and strides in x.
struct RowAxes {
  int axes = 0;
  int64_t sizes[kMostAxes], strides[kMostAxes];  // outermost first
};

struct ReductionPlan {
  RowAxes kept, reduced;  // without the last axis
  int64_t length = 1;     // of the last axis
  bool last_is_reduced = true;
};

LF_HOST_DEVICE static inline int64_t count_of(const RowAxes& rows) {
  int64_t product = 1;
  for (int axis = 0; axis < rows.axes; ++axis) product *= rows.sizes[axis];
  return product;
}

LF_HOST_DEVICE static inline int64_t offset_of(const RowAxes& rows, int64_t index) {
  if (rows.axes == 1) return index * rows.strides[0];
  int64_t result = 0;
  for (int axis = rows.axes; axis-- > 0;) {
    result += index % rows.sizes[axis] * rows.strides[axis];
    index /= rows.sizes[axis];
  }
  return result;
}

static inline ReductionPlan plan_reduction(const Shape& shape,
                                           const std::vector<bool>& is_reduced) {
  check_axes(shape);
  struct Group {
    int64_t size, stride;
    bool reduced;
  };
  Group groups[kMostAxes];  // innermost first
  int count = 0;
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] == 1) continue;
    if (count > 0 && groups[count - 1].reduced == is_reduced[axis]) {
      groups[count - 1].size *= shape[axis];
    } else {
      groups[count++] = {shape[axis], stride, is_reduced[axis]};
    }
    stride *= shape[axis];
  }
  ReductionPlan plan;
  if (count == 0) return plan;
  plan.length = groups[0].size;
  plan.last_is_reduced = groups[0].reduced;
  for (int g = count; g-- > 1;) {
    RowAxes& rows = groups[g].reduced ? plan.reduced : plan.kept;
    rows.sizes[rows.axes] = groups[g].size;
    rows.strides[rows.axes++] = groups[g].stride;
  }
  return plan;
}

}  // namespace llamaforge

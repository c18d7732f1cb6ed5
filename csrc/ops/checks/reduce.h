#pragma once

#include <vector>

#include "ops/checks/common.h"

namespace llamaforge {

struct Reduction {
  std::vector<bool> is_reduced;  // for each axis of x
  double count = 1;              // elements of x for each element of y
};

static inline Reduction check_reduce(const Tensor& x, const Tensor& y, const IntList& axes) {
  check_wide("x", x);
  Reduction reduction;
  reduction.is_reduced.resize(x.shape.size());
  for (int64_t axis : axes) {
    const auto at = static_cast<size_t>(axis);
    LF_CHECK(axis >= 0 && axis < x.rank() && !reduction.is_reduced[at],
             "axis {} of x {} is wrong or named twice", axis, to_string(x.shape));
    reduction.is_reduced[at] = true;
  }
  Shape kept, left_out;
  for (size_t axis = 0; axis < x.shape.size(); ++axis) {
    const bool reduced = reduction.is_reduced[axis];
    kept.push_back(reduced ? 1 : x.shape[axis]);
    if (reduced) {
      reduction.count *= static_cast<double>(x.shape[axis]);
    } else {
      left_out.push_back(x.shape[axis]);
    }
  }
  LF_CHECK(y.shape == kept || y.shape == left_out, "expected y of shape {} or {}, got {}",
           to_string(left_out), to_string(kept), to_string(y.shape));
  const bool widens = x.dtype == DType::bf16 && y.dtype == DType::f32;
  if (!widens) check_dtype("y", y, x.dtype);
  return reduction;
}

}  // namespace llamaforge

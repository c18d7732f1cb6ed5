#pragma once

#include "ops/checks/common.h"

namespace llamaforge {

static inline void check_softmax(const Tensor& x, const Tensor& y) {
  LF_CHECK(x.rank() >= 1, "x has no axis");
  check_float("x", x);
  check_like("y", y, x);
}

static inline void check_softmax_backward(const Tensor& dy, const Tensor& y, const Tensor& dx) {
  LF_CHECK(y.rank() >= 1, "y has no axis");
  check_float("y", y);
  check_like("dy", dy, y);
  check_like("dx", dx, y);
}

}  // namespace llamaforge

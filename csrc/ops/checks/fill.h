// fill, arange.
#pragma once

#include <cmath>

#include "ops/checks/common.h"

namespace llamaforge {

static inline void check_whole(const char* name, double value) {
  if (!(value >= INT32_MIN && value <= INT32_MAX) || value != std::floor(value)) {
    throw Error(
        "ERR_ARGUMENT",
        format("expected {} to be a whole number of 32 bits for dtype i32, got {}", name, value));
  }
}

static inline void check_fill(const Tensor& x, double value) {
  check_wide("x", x);
  if (x.dtype == DType::i32) check_whole("value", value);
}

static inline void check_arange(const Tensor& x, double start, double step) {
  check_wide("x", x);
  if (x.dtype != DType::i32) return;
  check_whole("start", start);
  check_whole("step", step);
  if (x.numel() > 0)
    check_whole("the last element", start + static_cast<double>(x.numel() - 1) * step);
}

}  // namespace llamaforge

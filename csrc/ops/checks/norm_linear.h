#pragma once

#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

// x (rows, inputs), y (rows, outputs), weight (products, inputs); products is 2 * outputs with
// SwiGLU.
struct NormLinearSize {
  int64_t rows, inputs, products, outputs;
};

static inline NormLinearSize check_norm_linear(const Tensor& x, const std::optional<In>& skip,
                                               const Tensor& norm_weight, const Tensor& weight,
                                               const std::optional<Out>& r, const Tensor& y,
                                               bool swiglu) {
  check_float("x", x);
  LF_CHECK(x.rank() == 2 && y.rank() == 2 && weight.rank() == 2,
           "expected matrices, got x {}, weight {}, y {}", to_string(x.shape),
           to_string(weight.shape), to_string(y.shape));
  const NormLinearSize size = {x.dim(0), x.dim(1), weight.dim(0), y.dim(1)};
  check_shape("norm_weight", norm_weight, {size.inputs});
  check_float("norm_weight", norm_weight);
  check_shape("weight", weight, {size.products, size.inputs});
  check_dtype("weight", weight, x.dtype);
  check_shape("y", y, {size.rows, swiglu ? size.products / 2 : size.products});
  check_dtype("y", y, x.dtype);
  LF_CHECK(!swiglu || size.products % 2 == 0, "expected an even number of rows of weight {}",
           to_string(weight.shape));
  LF_CHECK(skip.has_value() == r.has_value(), "expected r exactly if there is skip");
  if (skip) {
    check_like("skip", *skip, x);
    check_like("r", *r, x);
  }
  return size;
}

}  // namespace llamaforge

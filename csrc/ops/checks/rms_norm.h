#pragma once

#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

struct NormSize {
  int64_t rows, columns;
};

static inline NormSize check_norm(const Tensor& x, const Tensor& weight, const Tensor& rstd) {
  LF_CHECK(x.rank() >= 1, "expected x with at least one axis, got a scalar");
  const int64_t columns = x.dim(-1);
  const int64_t rows = columns ? x.numel() / columns : 0;
  check_float("x", x);
  check_float("weight", weight);
  check_dtype("rstd", rstd, DType::f32);
  check_shape("weight", weight, {columns});
  LF_CHECK(rstd.numel() == rows, "expected rstd of {} elements, one a row of x {}, got {}", rows,
           to_string(x.shape), to_string(rstd.shape));
  return {rows, columns};
}

static inline NormSize check_rms_norm_forward(const Tensor& x, const Tensor& weight,
                                              const Tensor& y, const Tensor& rstd) {
  const NormSize size = check_norm(x, weight, rstd);
  check_like("y", y, x);
  return size;
}

static inline NormSize check_add_rms_norm_forward(const Tensor& x, const Tensor& skip,
                                                  const Tensor& weight, const Tensor& r,
                                                  const Tensor& y, const Tensor& rstd) {
  const NormSize size = check_norm(x, weight, rstd);
  check_like("skip", skip, x);
  check_like("r", r, x);
  check_like("y", y, x);
  return size;
}

static inline NormSize check_rms_norm_backward(const Tensor& dy, const Tensor& x,
                                               const Tensor& weight, const Tensor& rstd,
                                               const std::optional<In>& dr, const Tensor& dx,
                                               const std::optional<InOut>& weight_grad) {
  const NormSize size = check_norm(x, weight, rstd);
  check_like("dy", dy, x);
  check_like("dx", dx, x);
  if (dr) check_like("dr", *dr, x);
  if (weight_grad) {
    check_shape("weight_grad", *weight_grad, weight.shape);
    check_dtype("weight_grad", *weight_grad, DType::f32);
  }
  return size;
}

}  // namespace llamaforge

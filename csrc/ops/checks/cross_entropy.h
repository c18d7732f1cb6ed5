#pragma once

#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

static inline void check_logits(const Tensor& logits, const Tensor& targets,
                                const Tensor& statistics) {
  check_float("logits", logits);
  LF_CHECK(logits.rank() == 2, "expected logits of shape (N,V), got {}", to_string(logits.shape));
  check_dtype("targets", targets, DType::i32);
  check_shape("targets", targets, {logits.dim(0)});
  check_dtype("statistics", statistics, DType::f32);
  check_shape("statistics", statistics, {2, logits.dim(0)});
}

static inline void check_one_loss(const char* name, const Tensor& loss) {
  check_dtype(name, loss, DType::f32);
  LF_CHECK(loss.numel() == 1, "expected one element for {}, got {}", name, to_string(loss.shape));
}

static inline void check_cross_entropy_forward(const Tensor& logits, const Tensor& targets,
                                               const Tensor& loss, const Tensor& statistics) {
  check_logits(logits, targets, statistics);
  check_one_loss("loss", loss);
}

static inline void check_cross_entropy_backward(const Tensor& d_loss, const Tensor& logits,
                                                const Tensor& targets, const Tensor& statistics,
                                                const Tensor& d_logits) {
  check_logits(logits, targets, statistics);
  check_one_loss("d_loss", d_loss);
  check_like("d_logits", d_logits, logits);
}

static inline void check_linear_cross_entropy(
    const Tensor& x, const Tensor& weight, const Tensor& targets, const std::optional<In>& d_losses,
    const std::optional<Out>& loss, const std::optional<Out>& losses,
    const std::optional<Out>& greedy, const std::optional<Out>& dx,
    const std::optional<Out>& dweight) {
  check_float("x", x);
  check_dtype("weight", weight, x.dtype);
  check_dtype("targets", targets, DType::i32);
  LF_CHECK(x.rank() == 2 && weight.rank() == 2 && weight.dim(1) == x.dim(1),
           "expected x (N,D) and weight (V,D), got {} and {}", to_string(x.shape),
           to_string(weight.shape));
  check_shape("targets", targets, {x.dim(0)});
  if (d_losses) {
    check_shape("d_losses", *d_losses, {x.dim(0)});
    check_dtype("d_losses", *d_losses, DType::f32);
    LF_CHECK(!loss, "expected d_losses or loss, got both");
  }
  if (loss) check_one_loss("loss", *loss);
  if (losses) {
    check_shape("losses", *losses, {x.dim(0)});
    check_dtype("losses", *losses, DType::f32);
  }
  if (greedy) {
    check_shape("greedy", *greedy, {x.dim(0)});
    check_dtype("greedy", *greedy, DType::i32);
    LF_CHECK(!dx && !dweight, "expected greedy or gradients, got both");
  }
  if (dx) {
    check_shape("dx", *dx, x.shape);
    if (dx->dtype != DType::f32) check_dtype("dx", *dx, x.dtype);
  }
  if (dweight) {
    check_shape("dweight", *dweight, weight.shape);
    check_dtype("dweight", *dweight, DType::f32);
  }
}

}  // namespace llamaforge

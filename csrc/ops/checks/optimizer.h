// adamw, sum_of_squares, step_guard, accumulate.
#pragma once

#include <optional>
#include <utility>

#include "ops/checks/common.h"

namespace llamaforge {

constexpr int64_t kGuardHeader = 8;  // numbers of the guard's state before its two histories
constexpr int64_t kDecisionNumbers = 8;

static inline void check_adamw(const Tensor& weight, const std::optional<InOut>& master,
                               const Tensor& grad, const Tensor& m, const Tensor& v,
                               const Tensor& decision) {
  const auto check = [n = weight.numel()](const char* name, const Tensor& tensor) {
    check_dtype(name, tensor, DType::f32);
    LF_CHECK(tensor.numel() == n, "expected {} of {} elements like weight, got {}", name, n,
             to_string(tensor.shape));
  };
  check_float("weight", weight);
  check("grad", grad);
  check("m", m);
  check("v", v);
  if (master) {
    check("master", *master);
    LF_CHECK(weight.dtype == DType::bf16, "a weight of dtype f32 is its own master: pass none");
  }
  check_dtype("decision", decision, DType::f32);
  check_shape("decision", decision, {kDecisionNumbers});
}

static inline void check_muon_momentum(const Tensor& grad, const Tensor& m, const Tensor& direction,
                                       const Tensor& decision) {
  check_dtype("grad", grad, DType::f32);
  check_dtype("m", m, DType::f32);
  check_float("direction", direction);
  for (const auto& [name, tensor] : {std::pair{"m", &m}, std::pair{"direction", &direction}}) {
    LF_CHECK(tensor->numel() == grad.numel(), "expected {} of {} elements like grad, got {}", name,
             grad.numel(), to_string(tensor->shape));
  }
  check_dtype("decision", decision, DType::f32);
  check_shape("decision", decision, {kDecisionNumbers});
}

static inline void check_muon_update(const Tensor& weight, const std::optional<InOut>& master,
                                     const Tensor& update, const Tensor& decision) {
  check_float("weight", weight);
  check_dtype("update", update, weight.dtype);
  LF_CHECK(update.numel() == weight.numel(), "expected update of {} elements like weight, got {}",
           weight.numel(), to_string(update.shape));
  if (master) {
    check_dtype("master", *master, DType::f32);
    LF_CHECK(master->numel() == weight.numel(),
             "expected master of {} elements like weight, got {}", weight.numel(),
             to_string(master->shape));
    LF_CHECK(weight.dtype == DType::bf16, "a weight of dtype f32 is its own master: pass none");
  }
  check_dtype("decision", decision, DType::f32);
  check_shape("decision", decision, {kDecisionNumbers});
}

static inline void check_scale_add(const Tensor& x, const Tensor& y) {
  check_float("x", x);
  check_like("y", y, x);
}

static inline void check_sum_of_squares(const Tensor& x, const Tensor& sum) {
  check_float("x", x);
  check_dtype("sum", sum, DType::f32);
  LF_CHECK(sum.numel() == 1, "expected sum of one element, got {}", to_string(sum.shape));
}

// The kernel checks the numbers in `state`.
static inline void check_step_guard(const Tensor& loss, const Tensor& squares, const Tensor& state,
                                    const Tensor& decision) {
  check_dtype("loss", loss, DType::f32);
  check_dtype("squares", squares, DType::f32);
  check_dtype("state", state, DType::f32);
  check_dtype("decision", decision, DType::f32);
  LF_CHECK(loss.numel() == 1, "expected loss of one element, got {}", to_string(loss.shape));
  LF_CHECK(squares.numel() >= 1, "expected at least one sum of squares, got {}",
           to_string(squares.shape));
  LF_CHECK(state.rank() == 1 && state.numel() >= kGuardHeader && state.numel() % 2 == 0,
           "expected state of shape [8 + 2 * window], got {}", to_string(state.shape));
  check_shape("decision", decision, {kDecisionNumbers});
}

static inline void check_accumulate(const Tensor& x, const Tensor& y) {
  check_float("x", x);
  check_float("y", y);
  check_shape("y", y, x.shape);
}

static inline void check_accumulate_scaled(const Tensor& x, const Tensor& s, const Tensor& y) {
  check_accumulate(x, y);
  check_dtype("s", s, DType::f32);
  LF_CHECK(s.numel() == 1, "expected s of one element, got {}", to_string(s.shape));
}

}  // namespace llamaforge

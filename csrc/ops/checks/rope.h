#pragma once

#include <cmath>
#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

static inline void check_rope_table(const Tensor& table, double theta) {
  check_dtype("table", table, DType::f32);
  LF_CHECK(table.rank() == 3 && table.dim(2) == 2,
           "expected table of shape (positions, head size / 2, 2), got {}", to_string(table.shape));
  LF_CHECK(std::isfinite(theta) && theta > 0, "expected a positive theta, got {}", theta);
}

// Each device checks the values of `positions`, because only a kernel sees them.
static inline void check_rope(const Tensor& x, const Tensor& table,
                              const std::optional<In>& positions, const Tensor& y, int64_t heads,
                              int64_t rotated_heads, int64_t position) {
  check_float("x", x);
  check_dtype("table", table, DType::f32);
  check_like("y", y, x);
  LF_CHECK(x.rank() == 3 && heads > 0 && x.dim(2) % heads == 0 && x.dim(2) / heads % 2 == 0,
           "expected x of shape (B,T,{}·head size) with an even head size, got {}", heads,
           to_string(x.shape));
  LF_CHECK(rotated_heads >= 0 && rotated_heads <= heads, "expected 0 to {} rotated heads, got {}",
           heads, rotated_heads);
  LF_CHECK(table.rank() == 3 && table.dim(1) == x.dim(2) / heads / 2 && table.dim(2) == 2,
           "expected table of shape (positions,{},2), got {}", x.dim(2) / heads / 2,
           to_string(table.shape));
  if (positions) {
    check_dtype("positions", *positions, DType::i32);
    check_shape("positions", *positions, {x.dim(0), x.dim(1)});
    LF_CHECK(position == 0, "expected position 0 beside positions, got {}", position);
    return;
  }
  LF_CHECK(position >= 0 && position + x.dim(1) <= table.dim(0),
           "positions {} to {} are not in the table of {}", position, position + x.dim(1) - 1,
           table.dim(0));
}

}  // namespace llamaforge

// The fp8_ ops. A tensor to cast is seen as (N,D) with D its last axis.
#pragma once

#include <optional>

#include "ops/checks/common.h"
#include "ops/checks/rms_norm.h"
#include "ops/checks/swiglu.h"
#include "ops/plans/fp8.h"

namespace llamaforge {

struct Fp8Size {
  int64_t rows, columns, padded;  // N, D, N'
  DType format;
};

static inline void check_number(const char* argument, const Tensor& tensor) {
  check_dtype(argument, tensor, DType::f32);
  LF_CHECK(tensor.numel() == 1, "expected one number for {}, got {}", argument,
           to_string(tensor.shape));
}

static inline void check_fp8(const char* argument, const Tensor& tensor) {
  if (!is_fp8(tensor.dtype)) throw_dtype(argument, "f8e4m3 or f8e5m2", tensor.dtype);
}

// Checks the results of a cast of numbers of this shape.
static inline Fp8Size check_fp8_results(const Shape& shape, const std::optional<Out>& rows,
                                        const std::optional<Out>& columns, const Tensor& scale) {
  LF_CHECK(!shape.empty() && shape.back() % kFp8Multiple == 0 && shape.back() > 0,
           "fp8 needs a last axis that is a multiple of {}, got {}", kFp8Multiple,
           to_string(shape));
  LF_CHECK(rows || columns, "expected rows, columns or both");
  Fp8Size size = {1, shape.back(), 0, rows ? rows->dtype : columns->dtype};
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) size.rows *= shape[axis];
  size.padded = fp8_padded(size.rows);
  LF_CHECK(size.columns <= INT32_MAX / 2, "a last axis of {} is too large", size.columns);
  check_number("scale", scale);
  if (rows) {
    check_fp8("rows", *rows);
    check_shape("rows", *rows, shape);
  }
  if (columns) {
    check_fp8("columns", *columns);
    check_dtype("columns", *columns, size.format);
    check_shape("columns", *columns, {size.columns, size.padded});
  }
  return size;
}

static inline void check_fp8_maximum(const Tensor& x, const Tensor& maximum) {
  check_dtype("x", x, DType::bf16);
  check_number("maximum", maximum);
}

static inline Fp8Size check_fp8_cast(const Tensor& x, const Tensor& maximum,
                                     const std::optional<Out>& rows,
                                     const std::optional<Out>& columns, const Tensor& scale) {
  check_fp8_maximum(x, maximum);
  return check_fp8_results(x.shape, rows, columns, scale);
}

constexpr int64_t kFp8Figures = 4;

static inline void check_fp8_statistics(const Tensor& bits, const Tensor& scale,
                                        const Tensor& figures) {
  check_fp8("bits", bits);
  check_number("scale", scale);
  check_dtype("figures", figures, DType::f32);
  check_shape("figures", figures, {kFp8Figures});
  LF_CHECK(bits.numel() > 0, "expected numbers, got a tensor of shape {}", to_string(bits.shape));
}

struct Fp8GemmSize {
  int64_t m, n, k;
};

static inline Fp8GemmSize check_fp8_gemm(const Tensor& a, const Tensor& a_scale, const Tensor& b,
                                         const Tensor& b_scale, const Tensor& c) {
  check_fp8("a", a);
  check_fp8("b", b);
  if (a.dtype == DType::f8e5m2 && b.dtype == DType::f8e5m2) {
    throw Error("ERR_DTYPE", "expected at most one operand of f8e5m2: no GPU multiplies two");
  }
  if (c.dtype != DType::f32 && c.dtype != DType::bf16) throw_dtype("c", "f32 or bf16", c.dtype);
  check_number("a_scale", a_scale);
  check_number("b_scale", b_scale);
  LF_CHECK(a.rank() >= 1 && b.rank() == 2 && c.rank() >= 1,
           "expected a (..., K), b (N, K) and c (..., N), got {}, {}, {}", to_string(a.shape),
           to_string(b.shape), to_string(c.shape));
  const Fp8GemmSize size = {a.numel() / a.dim(-1), b.dim(0), b.dim(1)};
  LF_CHECK(a.dim(-1) == size.k && c.dim(-1) == size.n && c.numel() / size.n == size.m,
           "shapes do not fit: {} · {} transposed -> {}", to_string(a.shape), to_string(b.shape),
           to_string(c.shape));
  LF_CHECK(size.k % kFp8Multiple == 0 && size.n % kFp8Multiple == 0,
           "fp8 needs rows of a and b, and columns of c, that are multiples of {}, got {} · {} "
           "transposed",
           kFp8Multiple, to_string(a.shape), to_string(b.shape));
  return size;
}

static inline Fp8Size check_fp8_rms_norm(const Tensor& x, const std::optional<In>& skip,
                                         const Tensor& weight, const std::optional<Out>& r,
                                         const std::optional<Out>& rows,
                                         const std::optional<Out>& columns, const Tensor& scale,
                                         const Tensor& rstd) {
  check_dtype("x", x, DType::bf16);
  check_dtype("weight", weight, DType::bf16);
  check_norm(x, weight, rstd);
  LF_CHECK(skip.has_value() == r.has_value(), "expected skip and r together");
  if (skip) {
    check_like("skip", *skip, x);
    check_like("r", *r, x);
  }
  const Fp8Size size = check_fp8_results(x.shape, rows, columns, scale);
  if (size.format != DType::f8e4m3) throw_dtype("the result", "f8e4m3", size.format);
  return size;
}

static inline SwigluSize check_fp8_swiglu_forward(const Tensor& gate_up, const Tensor& y,
                                                  const Tensor& maximum, const Tensor& slope) {
  check_dtype("gate_up", gate_up, DType::bf16);
  check_number("maximum", maximum);
  check_number("slope", slope);
  return check_swiglu("y", y, gate_up);
}

static inline Fp8Size check_fp8_swiglu_backward(const Tensor& dy, const Tensor& dy_maximum,
                                                const Tensor& gate_up, const Tensor& slope,
                                                const std::optional<Out>& rows,
                                                const std::optional<Out>& columns,
                                                const Tensor& scale) {
  check_dtype("gate_up", gate_up, DType::bf16);
  check_swiglu("dy", dy, gate_up);
  check_number("dy_maximum", dy_maximum);
  check_number("slope", slope);
  LF_CHECK(dy.dim(-1) % kFp8Multiple == 0, "fp8 needs a last axis that is a multiple of {}, got {}",
           kFp8Multiple, to_string(dy.shape));
  return check_fp8_results(gate_up.shape, rows, columns, scale);
}

}  // namespace llamaforge

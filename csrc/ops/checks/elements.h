// binary, unary, unary_backward. Each device's table says which kinds there are, and which of them
// take integers.
#pragma once

#include <string>

#include "ops/checks/common.h"

namespace llamaforge {

// Each device's plan checks that the shapes broadcast.
static inline void check_binary(const std::string& kind, bool compares, const Tensor& a,
                                const Tensor& b, const Tensor& y) {
  check_wide("a", a);
  const bool mixed = a.dtype != b.dtype;
  const bool number_beside_bf16 =
      (a.dtype == DType::f32 && a.numel() == 1 && b.dtype == DType::bf16) ||
      (b.dtype == DType::f32 && b.numel() == 1 && a.dtype == DType::bf16);
  LF_CHECK(!mixed || number_beside_bf16, "{} of {} and {}", kind, name_of(a.dtype),
           name_of(b.dtype));
  const DType result = compares ? DType::i32 : mixed ? DType::bf16 : a.dtype;
  LF_CHECK(y.dtype == result, "{} of {} gives {}, not {}", kind, name_of(a.dtype), name_of(result),
           name_of(y.dtype));
}

static inline void check_unary(const Tensor& x, const Tensor& y) {
  check_wide("x", x);
  check_like("y", y, x);
}

static inline void check_unary_backward(const Tensor& dy, const Tensor& x, const Tensor& dx) {
  check_float("x", x);
  check_like("dy", dy, x);
  check_like("dx", dx, x);
}

[[noreturn]] static inline void refuse_integers(const std::string& kind) {
  throw Error("ERR_DTYPE", format("{} takes floating-point tensors, not i32", kind));
}

[[noreturn]] static inline void refuse_kind(const std::string& kind) {
  throw Error("ERR_ARGUMENT", format("unknown kind \"{}\"", kind));
}

}  // namespace llamaforge

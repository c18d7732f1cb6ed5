#pragma once

#include "ops/checks/common.h"

namespace llamaforge {

struct SwigluSize {
  int64_t rows, ffn;
};

// half: y or its gradient.
static inline SwigluSize check_swiglu(const char* half_name, const Tensor& half,
                                      const Tensor& gate_up) {
  LF_CHECK(gate_up.rank() >= 1 && gate_up.dim(-1) % 2 == 0,
           "expected gate_up with an even last axis, got {}", to_string(gate_up.shape));
  check_float("gate_up", gate_up);
  Shape expected = gate_up.shape;
  expected.back() /= 2;
  check_shape(half_name, half, expected);
  check_dtype(half_name, half, gate_up.dtype);
  const int64_t ffn = expected.back();
  return {ffn ? half.numel() / ffn : 0, ffn};
}

static inline SwigluSize check_swiglu_backward(const Tensor& dy, const Tensor& gate_up,
                                               const Tensor& d_gate_up) {
  const SwigluSize size = check_swiglu("dy", dy, gate_up);
  check_like("d_gate_up", d_gate_up, gate_up);
  return size;
}

}  // namespace llamaforge

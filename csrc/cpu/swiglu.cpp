// SwiGLU (Shazeer 2020, arXiv 2002.05202) on the packed product of one GEMM:
//   gate_up (N,2F) = [gate | up],  y (N,F) = silu(gate) · up,
//   silu(g) = g · s,  s = 1 / (1 + e^-g)
// Backward recomputes s:
//   d_gate = dy · up · s · (1 + g · (1 − s)),  d_up = dy · silu(g);  d_gate_up may be gate_up
// Both are bound by memory: 3 and 5 tensors of (N,F).

#include "ops/checks/swiglu.h"
#include "cpu/kernel.h"
#include "cpu/unary_math.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void swiglu_forward(Stream&, In gate_up, Out y) {
  const auto [rows, ffn_size] = check_swiglu("y", y, gate_up);
  const int64_t ffn = ffn_size;
  with_float("gate_up", gate_up, [&]<class T>() {
    parallel_rows(rows, ffn, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* gate = gate_up.data<T>() + row * 2 * ffn;
        const T* up = gate + ffn;
        T* out = y.data<T>() + row * ffn;
        for_each_vector(0, ffn, [&](int64_t i, auto lanes) {
          const Floats g = lanes.load(gate + i);
          lanes.store(out + i, silu(g) * lanes.load(up + i));
        });
      }
    });
  });
}

void swiglu_backward(Stream&, In dy, In gate_up, Out d_gate_up) {
  const auto [rows, ffn_size] = check_swiglu_backward(dy, gate_up, d_gate_up);
  const int64_t ffn = ffn_size;
  with_float("gate_up", gate_up, [&]<class T>() {
    parallel_rows(rows, ffn, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* gate = gate_up.data<T>() + row * 2 * ffn;
        const T* up = gate + ffn;
        const T* gradient = dy.data<T>() + row * ffn;
        T* d_gate = d_gate_up.data<T>() + row * 2 * ffn;
        T* d_up = d_gate + ffn;
        for_each_vector(0, ffn, [&](int64_t i, auto lanes) {
          const Floats g = at_least(lanes.load(gate + i), -kFlatSilu);
          const Floats s = sigmoid(g);
          const Floats d = lanes.load(gradient + i);
          const Floats d_silu = d * lanes.load(up + i);
          lanes.store(d_gate + i, d_silu * s * (1.0f + at_most(g, kFlatSilu) * (1.0f - s)));
          lanes.store(d_up + i, d * g * s);
        });
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// RMSNorm and SwiGLU with results in fp8 (see ops.def; rms_norm.cpp and swiglu.cpp have the
// formulas).
#include "cpu/cpu_ops.h"
#include "cpu/fp8.h"
#include "cpu/unary_math.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

// The largest of |x|; NaN if one is NaN.
float largest_of(const float* x, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(std::abs(x[i]) <= largest)) largest = std::abs(x[i]);
    if (largest != largest) return largest;
  }
  return largest;
}

// The largest number of a row each, then of all.
struct RowMaxima {
  RowMaxima(Stream& stream, int64_t rows)
      : scratch(stream, static_cast<size_t>(rows) * sizeof(float)), count(rows) {}
  float& operator[](int64_t row) const { return scratch.as<float>()[row]; }
  float all() const { return largest_of(scratch.as<float>(), count); }
  const Scratch scratch;
  const int64_t count;
};

}  // namespace

void fp8_rms_norm_forward(Stream& stream, In x, std::optional<In> skip, In weight,
                          std::optional<Out> r, std::optional<Out> rows, std::optional<Out> columns,
                          Out scale, Out rstd, double eps) {
  const Fp8Size size = check_fp8_rms_norm(x, skip, weight, r, rows, columns, scale, rstd);
  // The norm itself computes rstd and r; its rounded result is not used.
  const auto storage = std::make_shared<Storage>(x.storage->shared_stream(), x.bytes());
  storage->allocate();
  Out normed;
  static_cast<Tensor&>(normed) = {storage, 0, x.shape, x.dtype};
  if (skip) {
    add_rms_norm_forward(stream, x, *skip, weight, *r, normed, rstd, eps);
  } else {
    rms_norm_forward(stream, x, weight, normed, rstd, eps);
  }
  const bfloat16* w = weight.data<bfloat16>();
  const Scratch weights(stream, static_cast<size_t>(size.columns) * sizeof(float));
  for (int64_t i = 0; i < size.columns; ++i) weights.as<float>()[i] = to_float(w[i]);
  const float bound =
      std::sqrt(static_cast<float>(size.columns)) * largest_of(weights.as<float>(), size.columns);
  const bfloat16* from = skip ? r->data<bfloat16>() : x.data<bfloat16>();
  const float* factors = rstd.data<float>();
  cast_rows(stream, size, bound, rows, columns, scale, [&](int64_t row, float* y) {
    for (int64_t i = 0; i < size.columns; ++i) {
      y[i] = to_float(from[row * size.columns + i]) * factors[row] * weights.as<float>()[i];
    }
  });
}

void fp8_swiglu_forward(Stream& stream, In gate_up, Out y, Out maximum, Out slope) {
  const auto [rows, ffn_size] = check_fp8_swiglu_forward(gate_up, y, maximum, slope);
  const int64_t ffn = ffn_size;
  const RowMaxima maxima(stream, rows), slopes(stream, rows);
  const Scratch scratch(stream, static_cast<size_t>(rows * ffn) * 2 * sizeof(float));
  parallel_rows(rows, ffn, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const bfloat16* gate = gate_up.data<bfloat16>() + row * 2 * ffn;
      const bfloat16* up = gate + ffn;
      bfloat16* out = y.data<bfloat16>() + row * ffn;
      float* stored = scratch.as<float>() + row * 2 * ffn;
      float* steepness = stored + ffn;
      for_each_vector(0, ffn, [&](int64_t i, auto lanes) {
        const Floats s = silu(lanes.load(gate + i)), u = lanes.load(up + i);
        lanes.store(out + i, s * u);
        lanes.store(stored + i, lanes.load(out + i));
        const Floats a = s < 0.0f ? -s : s, b = kSteepestSilu * (u < 0.0f ? -u : u);
        lanes.store(steepness + i, a < b ? b : a + 0.0f * b);
      });
      maxima[row] = largest_of(stored, ffn);
      slopes[row] = largest_of(steepness, ffn);
    }
  });
  *maximum.data<float>() = maxima.all();
  *slope.data<float>() = slopes.all();
}

void fp8_swiglu_backward(Stream& stream, In dy, In dy_maximum, In gate_up, In slope,
                         std::optional<Out> rows, std::optional<Out> columns, Out scale) {
  const Fp8Size size =
      check_fp8_swiglu_backward(dy, dy_maximum, gate_up, slope, rows, columns, scale);
  const int64_t ffn = size.columns / 2;
  const float bound = *dy_maximum.data<float>() * *slope.data<float>();
  cast_rows(stream, size, bound, rows, columns, scale, [&](int64_t row, float* d_gate) {
    const bfloat16* gate = gate_up.data<bfloat16>() + row * 2 * ffn;
    const bfloat16* up = gate + ffn;
    const bfloat16* gradient = dy.data<bfloat16>() + row * ffn;
    float* d_up = d_gate + ffn;
    for_each_vector(0, ffn, [&](int64_t i, auto lanes) {
      const Floats g = at_least(lanes.load(gate + i), -kFlatSilu);
      const Floats s = sigmoid(g);
      const Floats d = lanes.load(gradient + i);
      lanes.store(d_gate + i,
                  d * lanes.load(up + i) * s * (1.0f + at_most(g, kFlatSilu) * (1.0f - s)));
      lanes.store(d_up + i, d * g * s);
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

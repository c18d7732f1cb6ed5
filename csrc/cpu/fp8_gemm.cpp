// Products of fp8 tensors: the operands are widened to f32, where their products are exact, and
// summed in f32. A GPU's tensor cores sum in another order and with fewer bits.
#include <array>

#include "cpu/fp8.h"
#include "cpu/gemm.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

void widen_fp8(const Tensor& x, float* to) {
  with_fp8(x.dtype, [&]<class T>() {
    std::array<float, 256> values;
    for (size_t bits = 0; bits < values.size(); ++bits)
      values[bits] = fp8_to_float(T{static_cast<uint8_t>(bits)});
    const auto* from = static_cast<const uint8_t*>(x.raw());
    parallel_chunks(x.numel(), kChunk, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = values[from[i]];
    });
  });
}

void multiply(Stream& stream, const Tensor& a, const Tensor& a_scale, const Tensor& b,
              const Tensor& b_scale, const Tensor& c, bool accumulate) {
  const Fp8GemmSize size = check_fp8_gemm(a, a_scale, b, b_scale, c);
  const auto floats = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
  const Scratch wide_a(stream, floats(a.numel())), wide_b(stream, floats(b.numel())),
      sums(stream, floats(c.numel()));
  widen_fp8(a, wide_a.as<float>());
  widen_fp8(b, wide_b.as<float>());
  multiply_matrices(stream, {1, size.m, size.n, size.k, DType::f32, DType::f32},
                    {wide_a.as<float>(), false}, {wide_b.as<float>(), true}, sums.as<float>(),
                    false);
  const float scale = *a_scale.data<float>() * *b_scale.data<float>();
  const float* from = sums.as<float>();
  with_float("c", c, [&]<class T>() {
    T* to = c.data<T>();
    parallel_vectors(c.numel(), [&](int64_t i, auto lanes) {
      const Floats value = lanes.load(from + i) * scale;
      lanes.store(to + i, accumulate ? lanes.load(to + i) + value : value);
    });
  });
}

}  // namespace

void fp8_gemm(Stream& stream, In a, In a_scale, In b, In b_scale, Out c, bool) {
  multiply(stream, a, a_scale, b, b_scale, c, false);
}

void fp8_gemm_accumulate(Stream& stream, In a, In a_scale, In b, In b_scale, InOut c, bool) {
  multiply(stream, a, a_scale, b, b_scale, c, true);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

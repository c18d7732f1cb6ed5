// Elementary functions on vectors of floats that simd.h does not have: within 4 units in the last
// place over 2^-20..2^6 (test/ops/unary.test.ts), unless said otherwise. A NaN gives a NaN.
#pragma once

#include "cpu/simd.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Applies a scalar function to each lane.
template <class F>
LF_INLINE Floats lane_by_lane(Floats x, F f) {
  float lane[kLanes];
  store(lane, x);
  for (int i = 0; i < kLanes; ++i) lane[i] = f(lane[i]);
  return load(lane);
}

LF_INLINE Floats sqrt(Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX__)
  return reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x)));
#else
  return lane_by_lane(x, [](float v) { return std::sqrt(v); });
#endif
}

// Returns whether any lane of a mask, the result of a comparison of vectors, is set. The maximum of
// the lanes as numbers would not tell, because a NaN in one lane hides the others.
LF_INLINE bool any(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) !=
         0;
#elif defined(__AVX__)
  return _mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask)) == 0;
#elif defined(__aarch64__)
  return vmaxvq_u32(reinterpret_cast<uint32x4_t>(mask)) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

LF_INLINE Floats abs(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(x) & 0x7fffffffu);
}

// Returns a number with the magnitude of x and the sign of `from`.
LF_INLINE Floats copy_sign(Floats x, Floats from) {
  return reinterpret_cast<Floats>((reinterpret_cast<Words>(x) & 0x7fffffffu) |
                                  (reinterpret_cast<Words>(from) & 0x80000000u));
}

// Natural logarithm: x = 2^e · m with m in [sqrt(1/2), sqrt(2)), log m by Cephes' polynomial. -inf
// at 0, NaN below.
LF_INLINE Floats log(Floats x) {
  const Floats tiny = x < 0x1p-126f ? broadcast(0x1p23f) : broadcast(1.0f);  // lifts denormals
  const Words bits = reinterpret_cast<Words>(x * tiny);
  // Bits of sqrt(1/2): the exponent field now rounds to the nearer power.
  const Words shifted = bits - 0x3f3504f3u;
  const Ints exponent = reinterpret_cast<Ints>(shifted) >> 23;
  const Floats m = reinterpret_cast<Floats>((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const Floats e = __builtin_convertvector(exponent, Floats) -
                   (x < 0x1p-126f ? broadcast(23.0f) : broadcast(0.0f));
  Floats y = broadcast(7.0376836292e-2f);
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  const Floats square = m * m;
  y = y * m * square + e * -2.12194440e-4f - 0.5f * square;
  y = (m + y) + e * 0.693359375f;
  y = x == 0.0f ? broadcast(-__builtin_inff()) : y;
  y = x > 0x1.fffffep127f ? x : y;  // inf
  return (x < 0.0f) | (x != x) ? broadcast(__builtin_nanf("")) : y;
}

// tanh: an odd polynomial near 0, where the quotient would cancel; 1 - 2 / (e^2|x| + 1) elsewhere.
LF_INLINE Floats tanh(Floats x) {
  const Floats size = abs(x);
  const Floats square = x * x;
  Floats y = broadcast(-5.70498872745e-3f);
  y = y * square + 2.06390887954e-2f;
  y = y * square - 5.37397155531e-2f;
  y = y * square + 1.33314422036e-1f;
  y = y * square - 3.33332819422e-1f;
  const Floats near = y * square * x + x;
  const Floats far = copy_sign(1.0f - 2.0f / (exp(2.0f * size) + 1.0f), x);
  return size < 0.625f ? near : far;  // a NaN selects far, which is NaN
}

// sin or cos. Reducing x to a quadrant by pi/2 in three parts is exact enough up to 8192 (absolute
// error below 2e-7). Lanes beyond 8192, and infinities, are computed one by one. Only those lanes
// take that path, because a result must not depend on its neighbours in the vector.
template <bool kCosine>
LF_INLINE Floats sine(Floats x) {
  const Floats n = round_to_integer(clamp(x, -8192.0f, 8192.0f) * 0.636619772f);
  const Floats r = ((x - n * 1.5703125f) - n * 4.83751296997e-4f) - n * 7.54978942e-8f;
  const Floats square = r * r;
  Floats s = broadcast(-1.9515295891e-4f);
  s = s * square + 8.3321608736e-3f;
  s = s * square - 1.6666654611e-1f;
  s = s * square * r + r;
  Floats c = broadcast(2.443315711809948e-5f);
  c = c * square - 1.388731625493765e-3f;
  c = c * square + 4.166664568298827e-2f;
  c = c * square * square - 0.5f * square + 1.0f;
  const Ints quadrant = __builtin_convertvector(n, Ints) + (kCosine ? 1 : 0);
  Floats value = (quadrant & 1) != 0 ? c : s;
  value = (quadrant & 2) != 0 ? -value : value;
  const Ints far = abs(x) > 8192.0f;
  if (__builtin_expect(any(far), 0)) {
    value =
        far ? lane_by_lane(x, [](float v) { return kCosine ? std::cos(v) : std::sin(v); }) : value;
  }
  return x == x ? value : x;
}
LF_INLINE Floats sin(Floats x) { return sine<false>(x); }
LF_INLINE Floats cos(Floats x) { return sine<true>(x); }

// Beyond this bound x · sigmoid(x) is 0 or x in f32, and 0 times an infinity would be NaN.
constexpr float kFlatSilu = 200;

LF_INLINE Floats at_least(Floats x, float low) { return x < broadcast(low) ? broadcast(low) : x; }
LF_INLINE Floats at_most(Floats x, float high) { return x > broadcast(high) ? broadcast(high) : x; }

// x · sigmoid(x), and its derivative.
LF_INLINE Floats silu(Floats x) {
  x = at_least(x, -kFlatSilu);
  return x * sigmoid(x);
}
LF_INLINE Floats silu_slope(Floats x) {
  x = clamp(x, -kFlatSilu, kFlatSilu);
  const Floats s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// Vectors for CPU kernels: as many floats as the instruction set of this build holds in one
// register (16, 8 or 4).
//
// `Floats` is a GCC vector: + - * / and comparisons work lane by lane, a float operand is
// broadcast, `a < b ? x : y` selects. Multiply-add contracts to one instruction (the build sets
// -ffp-contract=fast). bf16 is a storage format only: load<bfloat16> widens, store<bfloat16> rounds
// to nearest even. NaN propagates through everything here.
//
//   int64_t i = 0;
//   for (; i + kLanes <= n; i += kLanes) store(y + i, exp(load(x + i)));
//   if (i < n) store_partial(y + i, exp(load_partial(x + i, n - i)), n - i);
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef LF_CPU_NAMESPACE
#error "LF_CPU_NAMESPACE is set by the build: cpu_v3, cpu_v4, cpu_neon or cpu_generic"
#endif

#define LF_INLINE inline __attribute__((always_inline))

namespace llamaforge::LF_CPU_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

// x - 0 keeps the sign of -0, which 0 + x would lose.
LF_INLINE Floats broadcast(float x) { return x - Floats{}; }

// ---- memory -------------------------------------------------------------------------------------

LF_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// GCC 12 splits the plain conversion in two halves; the masked form with all lanes on is one
// instruction.
LF_INLINE Floats widen(Halves half) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half));
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(wide) << 16);
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half));
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(wide) << 16);
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vshll_n_u16(reinterpret_cast<uint16x4_t>(half), 16));
#else
  return reinterpret_cast<Floats>(__builtin_convertvector(half, Words) << 16);
#endif
}

LF_INLINE Floats load(const bfloat16* p) {
  Halves half;
  std::memcpy(&half, p, sizeof half);
  return widen(half);
}

LF_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// Rounds to nearest even; a NaN becomes a quiet NaN. NEON's addhn adds and keeps the upper halves.
LF_INLINE Halves narrow(Floats v) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#elif defined(__aarch64__)
  const Words bits = reinterpret_cast<Words>(v);
  const Words half_unit = 0x7fff + ((bits >> 16) & 1);
  const Words addend = v == v ? half_unit : Words{};
  const Words number = v == v ? bits : bits | 0x400000;
  return reinterpret_cast<Halves>(
      vaddhn_u32(reinterpret_cast<uint32x4_t>(number), reinterpret_cast<uint32x4_t>(addend)));
#else
  const Words bits = reinterpret_cast<Words>(v);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(v == v ? rounded : quiet, Halves);
#endif
}

LF_INLINE void store(bfloat16* p, Floats v) {
  const Halves half = narrow(v);
  std::memcpy(p, &half, sizeof half);
}

// Loads the first n < kLanes elements; the other lanes are 0.
template <class T>
LF_INLINE Floats load_partial(const T* p, int64_t n) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}

template <class T>
LF_INLINE void store_partial(T* p, Floats v, int64_t n) {
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// ---- lane by lane -------------------------------------------------------------------------------

// Returns the larger of a and b, or NaN if either is NaN.
#if defined(__aarch64__)
LF_INLINE Floats maximum(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      vmaxq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}
LF_INLINE Floats minimum(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      vminq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}
#else
LF_INLINE Floats maximum(Floats a, Floats b) { return (a > b) | (a != a) ? a : b; }
LF_INLINE Floats minimum(Floats a, Floats b) { return (a < b) | (a != a) ? a : b; }
#endif

// Rounds to the nearest integer, for |x| < 2^22. The sum with 1.5·2^23 has no fraction bits left.
LF_INLINE Floats round_to_integer(Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_roundscale_ps(0xffff, reinterpret_cast<__m512>(x), 0x08));
#elif defined(__AVX__)
  return reinterpret_cast<Floats>(_mm256_round_ps(reinterpret_cast<__m256>(x), 0x08));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vrndnq_f32(reinterpret_cast<float32x4_t>(x)));
#else
  const Floats magic = broadcast(12582912.0f);
  return (x + magic) - magic;
#endif
}

// Computes x · 2^n for integral n, |n| <= 252. The result may be 0, denormal or infinity.
LF_INLINE Floats scale_by_power(Floats x, Floats n) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(n)));
#else
  const Ints whole = __builtin_convertvector(n, Ints);
  const Ints half = whole >> 1;
  const Floats first = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats second = reinterpret_cast<Floats>((whole - half + 127) << 23);
  return (x * first) * second;
#endif
}

// 2^r for |r| <= 1/2: minimax polynomial of degree 6, relative error 2e-9 before rounding.
LF_INLINE Floats exp2_fraction(Floats r) {
  Floats y = broadcast(0x1.41d332p-13f);
  y = y * r + 0x1.5f456ap-10f;
  y = y * r + 0x1.3b2dbcp-7f;
  y = y * r + 0x1.c6aed4p-5f;
  y = y * r + 0x1.ebfbdap-3f;
  y = y * r + 0x1.62e430p-1f;
  return y * r + 1.0f;
}

// Keeps x in [low, high]; NaN stays.
LF_INLINE Floats clamp(Floats x, float low, float high) {
  x = x < broadcast(low) ? broadcast(low) : x;
  return x > broadcast(high) ? broadcast(high) : x;
}

// 2^x; exactly 0 for -inf, inf for +inf.
LF_INLINE Floats exp2(Floats x) {
  x = clamp(x, -200.0f, 200.0f);
  const Floats n = round_to_integer(x);
  return scale_by_power(exp2_fraction(x - n), n);
}

// e^x within 2 units in the last place. ln(2) is taken in two parts (Cody and Waite): n times the
// first is exact.
LF_INLINE Floats exp(Floats x) {
  x = clamp(x, -150.0f, 150.0f);
  const Floats n = round_to_integer(x * 1.44269504f);
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats y = broadcast(0x1.6ab98p-10f);
  y = y * r + 0x1.126d0cp-7f;
  y = y * r + 0x1.55589ap-5f;
  y = y * r + 0x1.55540ap-3f;
  y = y * r + 0x1.fffffap-2f;
  y = y * r + 1.0f;
  return scale_by_power(y * r + 1.0f, n);
}

// 1 / (1 + e^-x), from 0 to 1 without overflow.
LF_INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

// ---- across lanes, in a fixed order -------------------------------------------------------------

// Interleaves the lower halves of a and b, or the upper halves: a0 b0 a1 b1 ...
LF_INLINE Floats interleave_low(Floats a, Floats b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
LF_INLINE Floats interleave_high(Floats a, Floats b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Lane i of the result is rows[i] reduced by `combine` over its lanes: kLanes reductions at 3
// instructions each.
template <class Combine>
LF_INLINE Floats reduce_rows(Floats (&rows)[kLanes], Combine combine) {
#pragma GCC unroll 5
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      rows[i] = combine(interleave_low(rows[i], rows[i + half]),
                        interleave_high(rows[i], rows[i + half]));
    }
  }
  return rows[0];
}

// rows[i][j] becomes rows[j][i].
LF_INLINE void transpose(Floats (&rows)[kLanes]) {
#pragma GCC unroll 5
  for (int round = 1; round < kLanes; round *= 2) {
    Floats next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Folds the upper half of the lanes onto the lower one until one is left.
template <class Combine>
LF_INLINE float reduce(Floats v, Combine combine) {
#pragma GCC unroll 5
  for (int round = 1; round < kLanes; round *= 2)
    v = combine(interleave_low(v, v), interleave_high(v, v));
  return v[0];
}

LF_INLINE float horizontal_sum(Floats v) {
  return reduce(v, [](Floats a, Floats b) { return a + b; });
}

// The largest lane; NaN if one is NaN.
LF_INLINE float horizontal_maximum(Floats v) { return reduce(v, maximum); }

}  // namespace llamaforge::LF_CPU_NAMESPACE

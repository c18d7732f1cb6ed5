// a to the power of b on vectors of floats, almost always correctly rounded: 2^(b · log2|a|) in
// double precision, because the absolute error of the product is the relative error of the result.
// Calling glibc's powf for each lane took ten times as long.
#pragma once

#include "cpu/unary_math.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Half a vector's lanes fill one register as doubles.
constexpr int kWide = kLanes / 2;
typedef float HalfFloats __attribute__((vector_size(kWide * 4)));
typedef double Doubles __attribute__((vector_size(kWide * 8)));
typedef uint64_t LongWords __attribute__((vector_size(kWide * 8)));

// log2 of positive numbers in float's range: x = 2^e · m, m in [sqrt(1/2), sqrt(2)),
// log m = 2 atanh((m-1) / (m+1)).
LF_INLINE Doubles wide_log2(Doubles x) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;  // bits of sqrt(1/2)
  constexpr uint64_t kMantissa = 0x000fffffffffffff;
  // The exponent, moved up by 512 so that it is never negative, becomes a double as the low bits of
  // 2^52.
  const LongWords shifted = reinterpret_cast<LongWords>(x) - kRootHalf + (uint64_t{512} << 52);
  const Doubles e =
      reinterpret_cast<Doubles>((shifted >> 52) | 0x4330000000000000u) - (0x1p52 + 512);
  const Doubles m = reinterpret_cast<Doubles>((shifted & kMantissa) + kRootHalf);
  const Doubles s = (m - 1.0) / (m + 1.0);
  const Doubles square = s * s;
  Doubles y = Doubles{} + 1.0 / 15;
  y = y * square + 1.0 / 13;
  y = y * square + 1.0 / 11;
  y = y * square + 1.0 / 9;
  y = y * square + 1.0 / 7;
  y = y * square + 1.0 / 5;
  y = y * square + 1.0 / 3;
  y = y * square + 1.0;
  return e + 2.8853900817779268 * s * y;  // 2 / ln 2
}

// 2^x for |x| <= 1000: Taylor's series of degree 9 on |x| <= 1/2, error 1e-11.
LF_INLINE Doubles wide_exp2(Doubles x) {
  const Doubles moved = x + 0x1.8p52;  // the nearest integer is in the low bits
  const Doubles r = (x - (moved - 0x1.8p52)) * 0.69314718055994531;
  Doubles y = Doubles{} + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  return y * reinterpret_cast<Doubles>((reinterpret_cast<LongWords>(moved) + 1023) << 52);
}

LF_INLINE Floats power(Floats a, Floats b) {
  HalfFloats base[2], exponent[2];
  const Floats size = abs(a);
  std::memcpy(base, &size, sizeof size);
  std::memcpy(exponent, &b, sizeof b);
  for (int half = 0; half < 2; ++half) {
    Doubles t = __builtin_convertvector(exponent[half], Doubles) *
                wide_log2(__builtin_convertvector(base[half], Doubles));
    t = t < -200.0 ? Doubles{} - 200.0 : t;
    t = t > 200.0 ? Doubles{} + 200.0 : t;
    base[half] = __builtin_convertvector(wide_exp2(t), HalfFloats);
  }
  Floats y;
  std::memcpy(&y, base, sizeof y);

  // The result for a negative base is NaN unless b is whole, and negative if b is odd.
  const Floats half = abs(b) < 0x1p22f ? b * 0.5f : broadcast(0.0f);
  const Floats clamped = abs(b) < 0x1p22f ? b : broadcast(0.0f);
  const Floats odd = half != round_to_integer(half) ? -y : y;
  const Floats negative =
      clamped != round_to_integer(clamped) ? broadcast(__builtin_nanf("")) : odd;
  y = a < 0.0f ? negative : y;

  // Zeros, infinities, NaN and exponents beyond 2^22 follow IEEE 754's table. Such lanes are
  // computed one by one, so that a result never depends on its neighbours in the vector.
  const Ints special = ~((size > 0.0f) & (size < __builtin_inff()) & (abs(b) < 0x1p22f));
  if (__builtin_expect(any(special), 0)) {
    float bases[kLanes], exponents[kLanes], results[kLanes];
    store(bases, a);
    store(exponents, b);
    store(results, y);
    for (int i = 0; i < kLanes; ++i) {
      if (special[i] != 0) results[i] = std::pow(bases[i], exponents[i]);
    }
    y = load(results);
  }
  return y;
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

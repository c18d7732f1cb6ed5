// Conversion between floats and the formats of 8 bits, with the results of a GPU's instructions:
// rounded to nearest even, numbers beyond the largest become the largest, NaN becomes 0x7f.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime/dtype.h"

namespace llamaforge {

template <class T>
struct Fp8Format;
template <>
struct Fp8Format<float8_e4m3> {
  static constexpr int kMantissa = 3, kLeastExponent = -6;
  static constexpr float kLargest = 448;
  static constexpr uint8_t kLargestBits = 0x7e;
};
template <>
struct Fp8Format<float8_e5m2> {
  static constexpr int kMantissa = 2, kLeastExponent = -14;
  static constexpr float kLargest = 57344;
  static constexpr uint8_t kLargestBits = 0x7b;
};

template <class T>
static inline T to_fp8(float x) {
  using Format = Fp8Format<T>;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {0x7f};
  float size;
  std::memcpy(&size, &bits, sizeof size);
  if (size >= Format::kLargest) return {static_cast<uint8_t>(sign | Format::kLargestBits)};
  int exponent = static_cast<int>(bits >> 23) - 127;
  if (exponent < Format::kLeastExponent) exponent = Format::kLeastExponent;
  // The distance of neighbouring numbers is 2^(exponent - mantissa). A count of such distances that
  // rounds up to the next exponent is that exponent's first number.
  const uint32_t inverse_bits = static_cast<uint32_t>(127 + Format::kMantissa - exponent) << 23;
  float inverse;
  std::memcpy(&inverse, &inverse_bits, sizeof inverse);
  const int distances = static_cast<int>(std::nearbyint(size * inverse));
  const int code = ((exponent - Format::kLeastExponent) << Format::kMantissa) + distances;
  return {static_cast<uint8_t>(sign | code)};
}

template <class T>
static inline float fp8_to_float(T x) {
  using Format = Fp8Format<T>;
  const int magnitude = x.bits & 0x7f;
  if (magnitude > Format::kLargestBits) {
    // In e5m2, the first number beyond the largest is infinity; e4m3 has none.
    return Format::kMantissa == 2 && magnitude == 0x7c ? (x.bits & 0x80 ? -INFINITY : INFINITY)
                                                       : NAN;
  }
  const int field = magnitude >> Format::kMantissa,
            fraction = magnitude & ((1 << Format::kMantissa) - 1);
  const int exponent = (field ? field - 1 : 0) + Format::kLeastExponent - Format::kMantissa;
  const float size = std::ldexp(
      static_cast<float>(field ? fraction + (1 << Format::kMantissa) : fraction), exponent);
  return x.bits & 0x80 ? -size : size;
}

}  // namespace llamaforge

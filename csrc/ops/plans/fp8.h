// Scales of fp8 tensors, equal to the bit on every device. A scale is a power of two, so
// multiplying by it rounds nothing, and a number's 8 bits depend on its exponent alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/plans/host_device.h"

namespace llamaforge {

// Columns of the stored transpose are padded to a multiple of this, which the product's sums need.
constexpr int64_t kFp8Multiple = 16;

LF_HOST_DEVICE static inline int64_t fp8_padded(int64_t n) {
  return (n + kFp8Multiple - 1) / kFp8Multiple * kFp8Multiple;
}

// The largest numbers are 448 = 1.75 · 2^8 and 57344 = 1.75 · 2^15.
constexpr int kLargestExponentE4M3 = 8, kLargestExponentE5M2 = 15;

LF_HOST_DEVICE static inline float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// Returns the largest power of two whose product with `bound` is at most 1.75 · 2^largest_exponent;
// 1 for a bound of 0, NaN for one that is not finite. Its inverse is exact.
LF_HOST_DEVICE static inline float fp8_multiplier(float bound, int largest_exponent) {
  uint32_t bits;
  memcpy(&bits, &bound, sizeof bits);
  bits &= 0x7fffffffu;
  if (bits == 0) return 1.0f;
  if (bits >= 0x7f800000u) {
    const uint32_t nan = 0x7fc00000u;
    float result;
    memcpy(&result, &nan, sizeof result);
    return result;
  }
  const int exponent = static_cast<int>(bits >> 23) - 127;
  int shift = largest_exponent - exponent - ((bits & 0x7fffffu) > 0x600000u ? 1 : 0);
  shift = shift > 126 ? 126 : shift < -126 ? -126 : shift;
  return power_of_two(shift);
}

// The largest factor of dy in SwiGLU's derivatives is max(1.1 · |up|, |silu(gate)|): the slope of
// silu is at most 1.0998.
constexpr float kSteepestSilu = 1.1f;

}  // namespace llamaforge

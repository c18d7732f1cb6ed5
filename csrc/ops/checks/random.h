#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "ops/checks/common.h"

namespace llamaforge {

static inline void check_random(const Tensor& x, int64_t offset) {
  check_float("x", x);
  if (offset < 0)
    throw Error("ERR_ARGUMENT", format("expected offset of at least 0, got {}", offset));
}

// Rule of dropout for an element, whose random word has 24 bits.
struct DropoutRule {
  uint32_t dropped_below;
  float scale;
};

static inline DropoutRule check_dropout(const Tensor& x, const Tensor& y, double rate,
                                        int64_t offset) {
  check_random(x, offset);
  check_like("y", y, x);
  if (!(rate >= 0 && rate < 1))
    throw Error("ERR_ARGUMENT", format("expected a rate from 0 to below 1, got {}", rate));
  return {static_cast<uint32_t>(std::llround(rate * 0x1p24)), static_cast<float>(1 / (1 - rate))};
}

// Numbers are low + range · u with u in [0, 1), and no larger than `most`, because rounding would
// reach `high`.
struct UniformRange {
  float low, range, most;
};

static inline UniformRange check_uniform(const Tensor& x, double low, double high, int64_t offset) {
  check_random(x, offset);
  const float from = static_cast<float>(low), to = static_cast<float>(high);
  if (!(from < to) || !std::isfinite(to - from)) {
    throw Error("ERR_ARGUMENT", format("expected finite low < high, got {} and {}", low, high));
  }
  // The largest number of the dtype below `high`.
  float most = std::nextafter(to, -std::numeric_limits<float>::infinity());
  if (x.dtype == DType::bf16) {
    uint32_t bits;
    std::memcpy(&bits, &most, sizeof bits);
    if (most < 0) bits += 0xffff;  // away from zero is down for a negative number
    bits &= 0xffff0000u;
    std::memcpy(&most, &bits, sizeof most);
  }
  return {from, to - from, most};
}

}  // namespace llamaforge

// Pieces of cross-entropy: targets, and one row of logits at a time.
#pragma once

#include <limits>

#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Returns the number of targets that count. Throws before anything is written if a target is
// neither a class nor ignore_index.
inline int64_t count_targets(const Tensor& targets, int64_t classes, int64_t ignore_index) {
  const int32_t* id = targets.data<int32_t>();
  int64_t count = 0;
  for (int64_t row = 0; row < targets.numel(); ++row) {
    if (id[row] == ignore_index) continue;
    if (id[row] < 0 || id[row] >= classes) {
      throw Error("ERR_TARGET", format("target {} of row {} is neither in 0..{} nor the ignored {}",
                                       id[row], row, classes - 1, ignore_index));
    }
    ++count;
  }
  return count;
}

template <class T>
float row_maximum(const T* x, int64_t n) {
  Floats highest = broadcast(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) highest = maximum(highest, load(x + i));
  float result = horizontal_maximum(highest);
  for (; i < n; ++i) {
    const float value = to_float(x[i]);
    if (value > result || value != value) result = value;
  }
  return result;
}

// Returns the sum of exp(x - highest) over a row, and passes the exponentials to keep(i, vector,
// access). Partial sums of a fixed number of elements are added in double, because a vocabulary is
// long.
template <class T, class Keep>
double sum_of_exponentials(const T* x, int64_t n, float highest, const Keep& keep) {
  constexpr int64_t kBlock = 2048;
  double total = 0;
  for (int64_t block = 0; block < n; block += kBlock) {
    Floats part = {};
    const int64_t whole = block + (std::min(n, block + kBlock) - block) / kLanes * kLanes;
    for (int64_t i = block; i < whole; i += kLanes) {
      const Floats e = exp(load(x + i) - highest);
      keep(i, e, WholeVector{});
      part += e;
    }
    if (whole < std::min(n, block + kBlock)) {
      const PartialVector rest{n - whole};
      float lane[kLanes] = {};
      rest.store(lane, exp(rest.load(x + whole) - highest));
      keep(whole, load(lane), rest);
      part += load(lane);
    }
    total += horizontal_sum(part);
  }
  return total;
}

// Returns the mean of all rows' losses, summed in double and in order; NaN if no target counts.
inline float mean_loss(const float* losses, int64_t rows, int64_t count) {
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) sum += losses[row];
  return count > 0 ? static_cast<float>(sum / static_cast<double>(count))
                   : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

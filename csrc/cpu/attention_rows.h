// Attention of one query over cached keys and values, which lie in stretches of consecutive rows.
#pragma once

#include "cpu/attention_shared.h"
#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Computes out = softmax(scale · q · kᵀ) · v for one query of `size` elements over `visible` rows.
// `scores` holds one float for each visible row, rounded up to whole vectors. each_stretch(body)
// calls body(first, count, keys, values) for the stretches in order: visible rows first ..
// first+count-1, whose keys and values begin at the pointers. The order of all sums depends on
// `visible` alone.
template <class T, class Stretches>
void attend_rows(const T* query, T* out, int64_t size, float scale, int64_t visible, float* scores,
                 const Stretches& each_stretch) {
  float largest = -INFINITY;
  each_stretch([&](int64_t first, int64_t count, const T* keys, const T*) {
    for (int64_t j = 0; j < count; ++j) {
      Floats sum = {};
      for_each_vector(0, size, [&](int64_t d, auto v) {
        sum += v.load(query + d) * v.load(keys + j * size + d);
      });
      scores[first + j] = horizontal_sum(sum) * scale;
      if (scores[first + j] > largest) largest = scores[first + j];
    }
  });
  for (int64_t j = visible; j < round_up(visible, kLanes); ++j) scores[j] = -INFINITY;
  Floats total = {};
  for (int64_t j = 0; j < visible; j += kLanes) {
    const Floats p = exp(load(scores + j) - largest);
    store(scores + j, p);
    total += p;
  }
  const float inverse = 1.0f / horizontal_sum(total);
  for_each_vector(0, size, [&](int64_t d, auto v) {
    Floats sum = {};
    each_stretch([&](int64_t first, int64_t count, const T*, const T* values) {
      for (int64_t j = 0; j < count; ++j) sum += scores[first + j] * v.load(values + j * size + d);
    });
    v.store(out + d, sum * inverse);
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

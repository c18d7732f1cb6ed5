// The first key that each token sees: i32 (B,T). Where documents share a window, this is the start
// of the token's document.
#pragma once

#include <optional>

#include "cpu/kernel.h"
#include "ops/checks/first_key.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Returns the values, or null if there are none. The values must never fall, because kernels skip
// all keys before the first key of a tile's first row. `position`: the number of keys before the
// first token.
inline const int32_t* checked_first_key(const std::optional<In>& first_key, int64_t batch,
                                        int64_t time, int64_t position = 0) {
  const int32_t* values = check_first_key(first_key, batch, time);
  if (!values) return nullptr;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t* row = values + b * time;
    for (int64_t t = 0; t < time; ++t) {
      const int32_t least = t > 0 ? row[t - 1] : 0;
      LF_CHECK(row[t] >= least && row[t] <= position + t,
               "first_key[{},{}] is {}: expected {} to {}, the token before's to the token itself",
               b, t, row[t], least, position + t);
    }
  }
  return values;
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// Where documents start within a window: i32 (B,T), for each token the index of the first token that it may look back at.
#pragma once

#include <optional>

#include "cpu/kernel.h"
#include "ops/checks/documents.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// The values, null if there are none. Kernels skip what lies before the first row of a tile, so they must never fall.
inline const int32_t* checked_starts(const std::optional<In>& starts, int64_t batch, int64_t time) {
  const int32_t* values = check_starts(starts, batch, time);
  if (!values) return nullptr;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t* row = values + b * time;
    for (int64_t t = 0; t < time; ++t) {
      const int32_t least = t > 0 ? row[t - 1] : 0;
      LF_CHECK(row[t] >= least && row[t] <= t, "starts[{},{}] is {}: expected {} to {}, the start before to the token itself",
               b, t, row[t], least, t);
    }
  }
  return values;
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

#pragma once

#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

// Where documents start within a window, i32 (B,T), for attention and rope. The values, which only a kernel sees, are
// the device's to check; null if there are none.
static inline const int32_t* check_starts(const std::optional<In>& starts, int64_t batch, int64_t time) {
  if (!starts) return nullptr;
  check_dtype("starts", *starts, DType::i32);
  check_shape("starts", *starts, {batch, time});
  return starts->data<int32_t>();
}

}  // namespace llamaforge

#pragma once

#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

// Returns the first key that each token sees, i32 (B,T), for attention; null if there are none.
// Each device checks the values, because only a kernel sees them.
static inline const int32_t* check_first_key(const std::optional<In>& first_key, int64_t batch,
                                             int64_t time) {
  if (!first_key) return nullptr;
  check_dtype("first_key", *first_key, DType::i32);
  check_shape("first_key", *first_key, {batch, time});
  return first_key->data<int32_t>();
}

}  // namespace llamaforge

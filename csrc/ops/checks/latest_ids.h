#pragma once

#include "ops/checks/common.h"

namespace llamaforge {

// Each device checks the values of `source`, because only a kernel sees them.
static inline int64_t check_latest_ids(const Tensor& known, const Tensor& source,
                                       const Tensor& latest, const Tensor& ids) {
  check_dtype("known", known, DType::i32);
  check_like("source", source, known);
  check_like("ids", ids, known);
  check_dtype("latest", latest, DType::i32);
  LF_CHECK(latest.numel() >= 1 && known.numel() <= INT32_MAX && latest.numel() <= INT32_MAX,
           "expected at least one latest id, got {}", to_string(latest.shape));
  return known.numel();
}

}  // namespace llamaforge

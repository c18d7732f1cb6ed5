// argmax, sample.
#pragma once

#include <cmath>

#include "ops/checks/common.h"

namespace llamaforge {

struct ChoiceSize {
  int64_t rows, length;
};

static inline ChoiceSize check_choice(const char* name, const Tensor& x, const Tensor& index) {
  LF_CHECK(x.rank() >= 1 && x.dim(-1) >= 1, "expected {} with a last axis of at least 1, got {}", name,
           to_string(x.shape));
  check_dtype("the result", index, DType::i32);
  const ChoiceSize size = {x.numel() / x.dim(-1), x.dim(-1)};
  LF_CHECK(size.length <= INT32_MAX, "the last axis of {} is longer than an i32 index can say", to_string(x.shape));
  LF_CHECK(index.numel() == size.rows, "expected a result of {} elements, one a row of {} {}, got {}", size.rows, name,
           to_string(x.shape), to_string(index.shape));
  return size;
}

static inline ChoiceSize check_sample(const Tensor& logits, const Tensor& ids, double temperature, int64_t top_k,
                                      double top_p, int64_t offset) {
  const ChoiceSize size = check_choice("logits", logits, ids);
  if (!(temperature >= 0 && std::isfinite(temperature)) || top_k < 0 || !(top_p > 0 && top_p <= 1) || offset < 0) {
    throw Error("ERR_ARGUMENT",
                format("expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and offset >= 0, got {}, {}, {} and {}",
                       temperature, top_k, top_p, offset));
  }
  check_float("logits", logits);
  return size;
}

}  // namespace llamaforge

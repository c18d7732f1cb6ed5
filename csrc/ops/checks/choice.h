// argmax, sample, sample_rows.
#pragma once

#include <cmath>
#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

struct ChoiceSize {
  int64_t rows, length;
};

static inline ChoiceSize check_choice(const char* name, const Tensor& x, const Tensor& index) {
  LF_CHECK(x.rank() >= 1 && x.dim(-1) >= 1, "expected {} with a last axis of at least 1, got {}",
           name, to_string(x.shape));
  check_dtype("the result", index, DType::i32);
  const ChoiceSize size = {x.numel() / x.dim(-1), x.dim(-1)};
  LF_CHECK(size.length <= INT32_MAX, "the last axis of {} is longer than an i32 index can say",
           to_string(x.shape));
  LF_CHECK(index.numel() == size.rows,
           "expected a result of {} elements, one a row of {} {}, got {}", size.rows, name,
           to_string(x.shape), to_string(index.shape));
  return size;
}

static inline ChoiceSize check_sample(const Tensor& logits, const Tensor& ids, double temperature,
                                      int64_t top_k, double top_p, int64_t offset) {
  const ChoiceSize size = check_choice("logits", logits, ids);
  if (!(temperature >= 0 && std::isfinite(temperature)) || top_k < 0 ||
      !(top_p > 0 && top_p <= 1) || offset < 0) {
    throw Error("ERR_ARGUMENT", format("expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and "
                                       "offset >= 0, got {}, {}, {} and {}",
                                       temperature, top_k, top_p, offset));
  }
  check_float("logits", logits);
  return size;
}

// Columns of the settings and numbers of sample_rows.
enum SampleSetting {
  kTemperature,
  kTopP,
  kMinP,
  kRepetition,
  kPresence,
  kFrequency,
  kSampleSettings
};
enum SampleNumber { kTopK, kSeedLow, kSeedHigh, kDraw, kCountsRow, kBiasRow, kSampleNumbers };

// Bit of `counts` that marks a token of the prompt. The bits below count the output's tokens.
constexpr int32_t kPromptToken = 1 << 30;

// Weights of tokens relative to the likeliest one are whole numbers of this unit. Sums of whole
// numbers do not depend on their order, so they are equal on every device.
constexpr double kSampleUnit = 0x1p40;

// Each device checks the values of settings and numbers, because only a kernel sees them.
static inline ChoiceSize check_sample_rows(const Tensor& logits, const Tensor& settings,
                                           const Tensor& numbers,
                                           const std::optional<InOut>& counts,
                                           const std::optional<In>& bias, const Tensor& ids,
                                           const std::optional<Out>& logprobs) {
  check_float("logits", logits);
  const ChoiceSize size = check_choice("logits", logits, ids);
  check_dtype("settings", settings, DType::f32);
  check_shape("settings", settings, {size.rows, kSampleSettings});
  check_dtype("numbers", numbers, DType::i32);
  check_shape("numbers", numbers, {size.rows, kSampleNumbers});
  const auto check_table = [&](const char* name, const Tensor& table, DType dtype) {
    check_dtype(name, table, dtype);
    LF_CHECK(table.rank() == 2 && table.dim(0) >= 1 && table.dim(1) == size.length,
             "expected {} of shape (rows,{}), got {}", name, size.length, to_string(table.shape));
  };
  if (counts) check_table("counts", *counts, DType::i32);
  if (bias) check_table("bias", *bias, DType::f32);
  if (logprobs) {
    check_dtype("logprobs", *logprobs, DType::f32);
    check_shape("logprobs", *logprobs, {size.rows});
  }
  return size;
}

}  // namespace llamaforge

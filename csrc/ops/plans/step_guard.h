// The rules by which an optimizer step is applied or skipped, for the kernels of all devices. They
// are computed in double and in one order, so that all devices decide alike.
//
// A step is skipped if the loss or the gradient norm is not finite, or if one of them lies more
// than z standard deviations above the mean of the last `window` applied steps. A skipped step
// never enters the window: one NaN would make every later z-score NaN (and a comparison with NaN is
// false, which lets all spikes through), and one spike would widen the deviation and hide the next.
// Skipping is a selection in adamw, because a product with 0 keeps NaN.
//
// state f32 (8 + 2·window): [filled, next, adam step, skips in a row, skips in all, 0, 0, 0,
// losses, gradient norms]. All of it is saved in a checkpoint. Counts are exact up to 2^24 steps;
// by then bias correction has long been 1.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/checks/optimizer.h"
#include "ops/plans/host_device.h"

namespace llamaforge::guard {

enum Count { kFilled, kNext, kAdamStep, kSkipsInARow, kSkips };
enum Decision { kApply, kMultiplier, kCorrection1, kCorrection2, kNorm, kLossZ, kNormZ, kReason };
enum Reason { kApplied, kLossNotFinite, kGradientNotFinite, kLossSpike, kGradientSpike };
static_assert(kSkips < kGuardHeader && kReason + 1 == kDecisionNumbers);

struct Rules {
  double clip, beta1, beta2, z_loss, z_grad_norm;
  int64_t minimum_history;
};

struct State {
  float *counts, *losses, *norms;
  int64_t window;
};

// The step to be decided on.
struct Step {
  double loss, norm;
  double loss_z, norm_z;  // 0 unless loss and norm are finite
};

LF_HOST_DEVICE static inline State state_at(float* data, int64_t window) {
  return {data, data + kGuardHeader, data + kGuardHeader + window, window};
}

LF_HOST_DEVICE static inline bool is_count(float value, int64_t most) {
  return value >= 0 && value <= static_cast<float>(most) && value == std::floor(value);
}
LF_HOST_DEVICE static inline bool has_filled(const State& state) {
  return is_count(state.counts[kFilled], state.window);
}
// Returns the highest possible place of the next step in the window.
LF_HOST_DEVICE static inline int64_t last_place(const State& state) {
  return state.window > 0 ? state.window - 1 : 0;
}
LF_HOST_DEVICE static inline bool has_next(const State& state) {
  return is_count(state.counts[kNext], last_place(state));
}

LF_HOST_DEVICE static inline double norm_of(const float* squares, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(squares[i]);
  return std::sqrt(sum);
}

// Returns by how many standard deviations `value` lies above the mean of the history; 0 where the
// history is too short or has no deviation.
LF_HOST_DEVICE static inline double z_score(double value, const float* history, const State& state,
                                            int64_t minimum_history) {
  const auto count = static_cast<int64_t>(state.counts[kFilled]);
  if (count < 2 || count < minimum_history) return 0;
  double mean = 0;
  LF_UNROLL_8
  for (int64_t i = 0; i < count; ++i) mean += static_cast<double>(history[i]);
  mean /= static_cast<double>(count);
  double variance = 0;
  LF_UNROLL_8
  for (int64_t i = 0; i < count; ++i) {
    const double difference = static_cast<double>(history[i]) - mean;
    variance += difference * difference;
  }
  const double deviation = std::sqrt(variance / static_cast<double>(count - 1));
  // The deviation of a constant series is the rounding of its f32 values (6e-8 of the mean), so the
  // next flicker of a few units in the last place would be a "spike". Real losses deviate by more
  // than a millionth.
  if (!(deviation > 1e-6 * std::fabs(mean))) return 0;
  return (value - mean) / deviation;
}

LF_HOST_DEVICE static inline Reason reason_of(const Step& step, const Rules& rules) {
  if (!std::isfinite(step.loss)) return kLossNotFinite;
  if (!std::isfinite(step.norm)) return kGradientNotFinite;
  if (rules.z_loss > 0 && step.loss_z > rules.z_loss) return kLossSpike;
  if (rules.z_grad_norm > 0 && step.norm_z > rules.z_grad_norm) return kGradientSpike;
  return kApplied;
}

LF_HOST_DEVICE static inline void remember(const State& state, const Step& step) {
  if (state.window == 0) return;
  const auto next = static_cast<int64_t>(state.counts[kNext]),
             filled = static_cast<int64_t>(state.counts[kFilled]);
  state.losses[next] = static_cast<float>(step.loss);
  state.norms[next] = static_cast<float>(step.norm);
  state.counts[kNext] = static_cast<float>((next + 1) % state.window);
  state.counts[kFilled] = static_cast<float>(filled < state.window ? filled + 1 : state.window);
}

// Writes the decision, and counts the step in `state`.
LF_HOST_DEVICE static inline void decide(const State& state, const Step& step, const Rules& rules,
                                         float* decision) {
  const Reason reason = reason_of(step, rules);
  for (int i = 0; i < kDecisionNumbers; ++i) decision[i] = 0;
  decision[kNorm] = static_cast<float>(step.norm);
  decision[kLossZ] = static_cast<float>(step.loss_z);
  decision[kNormZ] = static_cast<float>(step.norm_z);
  decision[kReason] = static_cast<float>(reason);
  if (reason != kApplied) {
    state.counts[kSkipsInARow] += 1;
    state.counts[kSkips] += 1;
    return;
  }
  state.counts[kAdamStep] += 1;
  state.counts[kSkipsInARow] = 0;
  remember(state, step);
  const double number = static_cast<double>(state.counts[kAdamStep]);
  const double ratio = rules.clip / (step.norm + 1e-6);  // as PyTorch clips
  decision[kApply] = 1;
  decision[kMultiplier] = rules.clip > 0 && ratio < 1 ? static_cast<float>(ratio) : 1.0f;
  decision[kCorrection1] = static_cast<float>(1.0 / (1.0 - std::pow(rules.beta1, number)));
  decision[kCorrection2] = static_cast<float>(1.0 / (1.0 - std::pow(rules.beta2, number)));
}

}  // namespace llamaforge::guard

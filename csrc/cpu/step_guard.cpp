// Decides on the device whether an optimizer step is applied, so that the host need not wait for the loss.
//
// A step is skipped if the loss or the gradient norm is not finite, or if one of them lies more than z standard
// deviations above the mean of the last `window` applied steps. What was skipped never enters the window: one NaN would
// make every later z-score NaN (and a comparison with NaN is false, which lets all spikes through), one spike would widen
// the deviation and hide the next. Skipping is a selection in adamw: a product with 0 keeps NaN.
//
// state f32 (8 + 2·window): [filled, next, adam step, skips in a row, skips in all, 0, 0, 0, losses, gradient norms]. All
// of it is saved in a checkpoint. Counts are exact up to 2^24 steps; by then bias correction has long been 1.

#include "cpu/kernel.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

enum State { kFilled, kNext, kAdamStep, kSkipsInARow, kSkips, kHeader = 8 };
enum Decision { kApply, kMultiplier, kCorrection1, kCorrection2, kNorm, kLossZ, kNormZ, kReason, kDecisionSize };
enum Reason { kApplied, kLossNotFinite, kGradientNotFinite, kLossSpike, kGradientSpike };

// Standard deviations of `value` above the mean of the history; 0 where there is too little of it or no deviation.
double z_score(double value, const float* history, int64_t count, int64_t minimum_history) {
  if (count < std::max<int64_t>(2, minimum_history)) return 0;
  double mean = 0;
  for (int64_t i = 0; i < count; ++i) mean += history[i];
  mean /= static_cast<double>(count);
  double variance = 0;
  for (int64_t i = 0; i < count; ++i) variance += (history[i] - mean) * (history[i] - mean);
  const double deviation = std::sqrt(variance / static_cast<double>(count - 1));
  // A constant series has the rounding of its f32 values for a deviation (6e-8 of the mean): the next flicker of a few
  // units in the last place would be a "spike". Real losses deviate by more than a millionth.
  if (!(deviation > 1e-6 * std::abs(mean))) return 0;
  return (value - mean) / deviation;
}

int64_t count_of(float value, int64_t most, const char* name) {
  if (!(value >= 0 && value <= static_cast<float>(most)) || value != std::floor(value)) {
    throw Error("ERR_ARGUMENT", format("expected state.{} to be a whole number in 0..{}, got {}", name, most, value));
  }
  return static_cast<int64_t>(value);
}

}  // namespace

void step_guard(Stream&, In loss, In squares, InOut state, Out decision, double clip, double beta1, double beta2,
                double z_loss, double z_grad_norm, int64_t minimum_history) {
  check_step_guard(loss, squares, state, decision);

  float* header = state.data<float>();
  const int64_t window = (state.numel() - kHeader) / 2;
  float* losses = header + kHeader;
  float* norms = losses + window;
  const int64_t filled = count_of(header[kFilled], window, "filled");
  const int64_t next = count_of(header[kNext], std::max<int64_t>(0, window - 1), "next");

  const double loss_value = loss.data<float>()[0];
  double squares_sum = 0;
  for (int64_t i = 0; i < squares.numel(); ++i) squares_sum += squares.data<float>()[i];
  const double norm = std::sqrt(squares_sum);

  Reason reason = kApplied;
  double loss_z = 0, norm_z = 0;
  if (!std::isfinite(loss_value)) {
    reason = kLossNotFinite;
  } else if (!std::isfinite(norm)) {
    reason = kGradientNotFinite;
  } else {
    loss_z = z_score(loss_value, losses, filled, minimum_history);
    norm_z = z_score(norm, norms, filled, minimum_history);
    if (z_loss > 0 && loss_z > z_loss) {
      reason = kLossSpike;
    } else if (z_grad_norm > 0 && norm_z > z_grad_norm) {
      reason = kGradientSpike;
    }
  }

  float* out = decision.data<float>();
  std::fill_n(out, static_cast<int>(kDecisionSize), 0.0f);
  out[kNorm] = static_cast<float>(norm);
  out[kLossZ] = static_cast<float>(loss_z);
  out[kNormZ] = static_cast<float>(norm_z);
  out[kReason] = static_cast<float>(reason);
  if (reason != kApplied) {
    header[kSkipsInARow] += 1;
    header[kSkips] += 1;
    return;
  }
  header[kAdamStep] += 1;
  header[kSkipsInARow] = 0;
  if (window > 0) {
    losses[next] = static_cast<float>(loss_value);
    norms[next] = static_cast<float>(norm);
    header[kNext] = static_cast<float>((next + 1) % window);
    header[kFilled] = static_cast<float>(std::min(filled + 1, window));
  }
  const double step = header[kAdamStep];
  out[kApply] = 1;
  out[kMultiplier] = clip > 0 ? static_cast<float>(std::min(1.0, clip / (norm + 1e-6))) : 1.0f;  // as PyTorch clips
  out[kCorrection1] = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step)));
  out[kCorrection2] = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step)));
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

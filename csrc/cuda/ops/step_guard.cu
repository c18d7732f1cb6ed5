// Decides on the device whether an optimizer step is applied, so that the host need not wait for
// the loss. The rules, and the arithmetic in double in the same order, are those of
// csrc/cpu/step_guard.cpp. The two histories are walked in parallel.
//
// A step is skipped if the loss or the gradient norm is not finite, or if one of them lies more
// than z standard deviations above the mean of the last `window` applied steps. Values of skipped
// steps never enter the window. state f32 (8 + 2·window): [filled, next, adam step, skips in a row,
// skips in all, 0, 0, 0, losses, gradient norms].

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/optimizer.h"
#include "runtime/settings.h"

namespace llamaforge::cuda {

namespace {

enum State { kFilled, kNext, kAdamStep, kSkipsInARow, kSkips, kHeader = 8 };
enum Decision { kApply, kMultiplier, kCorrection1, kCorrection2, kNorm, kLossZ, kNormZ, kReason, kDecisionSize };
enum Reason { kApplied, kLossNotFinite, kGradientNotFinite, kLossSpike, kGradientSpike };

struct Rules {
  double clip, beta1, beta2, z_loss, z_grad_norm;
  int64_t minimum_history;
};

// Standard deviations of `value` above the mean of the history. 0 if the history is too short, or
// if its deviation does not exceed the rounding of f32 values.
__device__ double z_score(double value, const float* history, int64_t count, int64_t minimum_history) {
  if (count < max(int64_t{2}, minimum_history)) return 0;
  double mean = 0;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) mean += static_cast<double>(history[i]);
  mean /= static_cast<double>(count);
  double variance = 0;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) {
    const double difference = static_cast<double>(history[i]) - mean;
    variance += difference * difference;
  }
  const double deviation = sqrt(variance / static_cast<double>(count - 1));
  if (!(deviation > 1e-6 * fabs(mean))) return 0;
  return (value - mean) / deviation;
}

__device__ bool is_count(float value, int64_t most) {
  return value >= 0 && value <= static_cast<float>(most) && value == floorf(value);
}

// One block of two warps: the first thread of each scores one history.
__global__ void __launch_bounds__(64)
    step_guard_kernel(const float* loss, const float* squares, int64_t squares_count, float* header, float* decision,
                      int64_t window, Rules rules, FaultSite filled_site, FaultSite next_site) {
  __shared__ double z[2];
  float* losses = header + kHeader;
  float* norms = losses + window;
  const int64_t last = max(int64_t{0}, window - 1);
  const bool good_filled = is_count(header[kFilled], window), good_next = is_count(header[kNext], last);
  if (!good_filled || !good_next) {  // uniform over the block
    if (threadIdx.x == 0) {
      if (!good_filled) {
        report(filled_site, static_cast<double>(window), header[kFilled]);
      } else {
        report(next_site, static_cast<double>(last), header[kNext]);
      }
    }
    return;
  }
  const int64_t filled = static_cast<int64_t>(header[kFilled]), next = static_cast<int64_t>(header[kNext]);
  const double loss_value = loss[0];
  double squares_sum = 0;
  for (int64_t i = 0; i < squares_count; ++i) squares_sum += static_cast<double>(squares[i]);
  const double norm = sqrt(squares_sum);
  const bool finite = isfinite(loss_value) && isfinite(norm);
  if (threadIdx.x % 32 == 0) {
    const bool first = threadIdx.x == 0;
    z[threadIdx.x / 32] =
        finite ? z_score(first ? loss_value : norm, first ? losses : norms, filled, rules.minimum_history) : 0.0;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;

  Reason reason = kApplied;
  if (!isfinite(loss_value)) {
    reason = kLossNotFinite;
  } else if (!isfinite(norm)) {
    reason = kGradientNotFinite;
  } else if (rules.z_loss > 0 && z[0] > rules.z_loss) {
    reason = kLossSpike;
  } else if (rules.z_grad_norm > 0 && z[1] > rules.z_grad_norm) {
    reason = kGradientSpike;
  }
  for (int i = 0; i < kDecisionSize; ++i) decision[i] = 0;
  decision[kNorm] = static_cast<float>(norm);
  decision[kLossZ] = static_cast<float>(z[0]);
  decision[kNormZ] = static_cast<float>(z[1]);
  decision[kReason] = static_cast<float>(reason);
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
    header[kFilled] = static_cast<float>(min(filled + 1, window));
  }
  const double step = header[kAdamStep];
  decision[kApply] = 1;
  decision[kMultiplier] = rules.clip > 0 ? static_cast<float>(fmin(1.0, rules.clip / (norm + 1e-6))) : 1.0f;
  decision[kCorrection1] = static_cast<float>(1.0 / (1.0 - pow(rules.beta1, step)));
  decision[kCorrection2] = static_cast<float>(1.0 / (1.0 - pow(rules.beta2, step)));
}

// With LLAMAFORGE_CUDA_TRAP=1 this kernel runs after each decision and ends the device's context,
// as a fault in any kernel would. Tests use it to see how a run reacts to the loss of its GPU.
__global__ void trap_kernel() { __trap(); }

}  // namespace

void step_guard(Stream& stream, In loss, In squares, InOut state, Out decision, double clip, double beta1, double beta2,
                double z_loss, double z_grad_norm, int64_t minimum_history) {
  CudaStream& cuda = on_cuda(stream);
  check_step_guard(loss, squares, state, decision);
  const FaultSite filled_site =
      cuda.fault_site("ERR_ARGUMENT", "expected state.filled to be a whole number in 0..{}, got {}");
  const FaultSite next_site =
      cuda.fault_site("ERR_ARGUMENT", "expected state.next to be a whole number in 0..{}, got {}");
  step_guard_kernel<<<1, 64, 0, cuda.compute()>>>(
      loss.data<float>(), squares.data<float>(), squares.numel(), state.data<float>(), decision.data<float>(),
      (state.numel() - kHeader) / 2, {clip, beta1, beta2, z_loss, z_grad_norm, minimum_history}, filled_site,
      next_site);
  check_launch();
  if (is_on("LLAMAFORGE_CUDA_TRAP")) trap_kernel<<<1, 1, 0, cuda.compute()>>>();
}

}  // namespace llamaforge::cuda

// Decides on the device whether an optimizer step is applied, so that the host need not wait for
// the loss. The rules are in csrc/ops/plans/step_guard.h; here the two histories are walked side by
// side.

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/plans/step_guard.h"
#include "runtime/settings.h"

namespace llamaforge::cuda {

namespace {

// One block of two warps: the first thread of each scores one history.
__global__ void __launch_bounds__(64)
    step_guard_kernel(const float* loss, const float* squares, int64_t squares_count,
                      float* state_data, float* decision, int64_t window, guard::Rules rules,
                      FaultSite filled_site, FaultSite next_site) {
  __shared__ double z[2];
  const guard::State state = guard::state_at(state_data, window);
  const bool has_filled = guard::has_filled(state), has_next = guard::has_next(state);
  if (!has_filled || !has_next) {  // uniform: every thread reads the same state
    if (threadIdx.x == 0) {
      if (!has_filled) {
        report(filled_site, static_cast<double>(window), state.counts[guard::kFilled]);
      } else {
        report(next_site, static_cast<double>(guard::last_place(state)),
               state.counts[guard::kNext]);
      }
    }
    return;
  }
  guard::Step step = {loss[0], guard::norm_of(squares, squares_count), 0, 0};
  const bool finite = isfinite(step.loss) && isfinite(step.norm);
  if (threadIdx.x % 32 == 0) {
    const bool first = threadIdx.x == 0;
    z[threadIdx.x / 32] =
        finite ? guard::z_score(first ? step.loss : step.norm, first ? state.losses : state.norms,
                                state, rules.minimum_history)
               : 0.0;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  step.loss_z = z[0];
  step.norm_z = z[1];
  guard::decide(state, step, rules, decision);
}

// With LLAMAFORGE_CUDA_TRAP=1 this kernel runs after each decision and ends the device's context,
// as a fault in any kernel would. Tests use it to see how a run reacts to the loss of its GPU.
__global__ void trap_kernel() { __trap(); }

}  // namespace

void step_guard(Stream& stream, In loss, In squares, InOut state, Out decision, double clip,
                double beta1, double beta2, double z_loss, double z_grad_norm,
                int64_t minimum_history) {
  CudaStream& cuda = on_cuda(stream);
  check_step_guard(loss, squares, state, decision);
  const FaultSite filled_site = cuda.fault_site(
      "ERR_ARGUMENT", "expected state.filled to be a whole number in 0..{}, got {}");
  const FaultSite next_site =
      cuda.fault_site("ERR_ARGUMENT", "expected state.next to be a whole number in 0..{}, got {}");
  step_guard_kernel<<<1, 64, 0, cuda.compute()>>>(
      loss.data<float>(), squares.data<float>(), squares.numel(), state.data<float>(),
      decision.data<float>(), (state.numel() - kGuardHeader) / 2,
      {clip, beta1, beta2, z_loss, z_grad_norm, minimum_history}, filled_site, next_site);
  check_launch();
  if (is_on("LLAMAFORGE_CUDA_TRAP")) trap_kernel<<<1, 1, 0, cuda.compute()>>>();
}

}  // namespace llamaforge::cuda

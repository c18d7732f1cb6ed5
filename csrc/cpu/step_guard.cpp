// Decides on the device whether an optimizer step is applied, so that the host need not wait for
// the loss. The rules are in csrc/ops/plans/step_guard.h.

#include "ops/plans/step_guard.h"
#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

void check_count(bool good, const char* name, int64_t most, float value) {
  if (good) return;
  throw Error("ERR_ARGUMENT",
              format("expected state.{} to be a whole number in 0..{}, got {}", name, most, value));
}

}  // namespace

void step_guard(Stream&, In loss, In squares, InOut state, Out decision, double clip, double beta1,
                double beta2, double z_loss, double z_grad_norm, int64_t minimum_history) {
  check_step_guard(loss, squares, state, decision);
  const guard::Rules rules = {clip, beta1, beta2, z_loss, z_grad_norm, minimum_history};
  const guard::State now = guard::state_at(state.data<float>(), (state.numel() - kGuardHeader) / 2);
  check_count(guard::has_filled(now), "filled", now.window, now.counts[guard::kFilled]);
  check_count(guard::has_next(now), "next", guard::last_place(now), now.counts[guard::kNext]);

  guard::Step step = {loss.data<float>()[0], guard::norm_of(squares.data<float>(), squares.numel()),
                      0, 0};
  if (std::isfinite(step.loss) && std::isfinite(step.norm)) {
    step.loss_z = guard::z_score(step.loss, now.losses, now, minimum_history);
    step.norm_z = guard::z_score(step.norm, now.norms, now, minimum_history);
  }
  guard::decide(now, step, rules, decision.data<float>());
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

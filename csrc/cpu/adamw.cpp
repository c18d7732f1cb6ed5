// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over one flat group, in one pass:
//   m += (1 − β1)(g − m)   v = β2 v + (1 − β2) g²   w −= lr·λ·w   w −= lr · m̂ / (√v̂ + ε)
// g is the gradient times the clip multiplier; the bias-corrected m̂ and v̂ are m · decision[2] and
// v · decision[3].
// With a master, the sum lives in the master (f32), and the weight is its rounding, written in the
// same pass.
// A skipped step is a selection: decision[0] = 0 returns before anything is touched, because 0 ×
// NaN is NaN.
// Memory traffic is the floor: 28 bytes per parameter in f32, 30 with a bf16 weight and an f32
// master.

#include "cpu/kernel.h"
#include "cpu/unary_math.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

struct Step {
  float multiplier, keep, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction2, eps;
};

// `master` (n) and `weight` (n) share memory if there is no master.
template <class Master, class Weight>
void update(Master* master, Weight* weight, const float* grad, float* m, float* v, int64_t n,
            const Step& step) {
  parallel_vectors(n, [&](int64_t i, auto lanes) {
    const Floats g = lanes.load(grad + i) * step.multiplier;
    const Floats old_m = lanes.load(m + i);
    const Floats new_m = old_m + (g - old_m) * step.one_minus_beta1;
    const Floats new_v = lanes.load(v + i) * step.beta2 + g * g * step.one_minus_beta2;
    const Floats denominator = sqrt(new_v) * step.root_correction2 + step.eps;
    const Floats w = lanes.load(master + i) * step.keep - new_m * step.step_size / denominator;
    lanes.store(m + i, new_m);
    lanes.store(v + i, new_v);
    lanes.store(weight + i, w);
    if constexpr (!std::is_same_v<Master, Weight>) lanes.store(master + i, w);
  });
}

}  // namespace

void adamw(Stream&, InOut weight, std::optional<InOut> master, In grad, InOut m, InOut v,
           In decision, double lr, double beta1, double beta2, double eps, double weight_decay) {
  check_adamw(weight, master, grad, m, v, decision);
  const int64_t n = weight.numel();
  const float* chosen = decision.data<float>();
  if (chosen[0] != 1.0f) return;
  const Step step = {
      .multiplier = chosen[1],
      .keep = static_cast<float>(1.0 - lr * weight_decay),
      .one_minus_beta1 = static_cast<float>(1.0 - beta1),
      .beta2 = static_cast<float>(beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - beta2),
      .step_size = static_cast<float>(lr * chosen[2]),
      .root_correction2 = std::sqrt(chosen[3]),
      .eps = static_cast<float>(eps),
  };
  const float* g = grad.data<float>();
  if (master) {
    update(master->data<float>(), weight.data<bfloat16>(), g, m.data<float>(), v.data<float>(), n,
           step);
  } else {
    with_float("weight", weight, [&]<class T>() {
      update(weight.data<T>(), weight.data<T>(), g, m.data<float>(), v.data<float>(), n, step);
    });
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// Muon (Jordan et al. 2024) apart from its products: momentum, update, and the sums of its
// iteration (see ops.def). A skipped step is a selection, as in adamw.cpp.

#include "cpu/kernel.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

// `master` (n) and `weight` (n) share memory if there is no master.
template <class Master, class Weight>
void apply(Master* master, Weight* weight, const Weight* change, int64_t n, float keep,
           float step) {
  parallel_vectors(n, [&](int64_t i, auto lanes) {
    const Floats w = lanes.load(master + i) * keep - lanes.load(change + i) * step;
    lanes.store(weight + i, w);
    if constexpr (!std::is_same_v<Master, Weight>) lanes.store(master + i, w);
  });
}

}  // namespace

void muon_momentum(Stream&, In grad, InOut m, Out direction, In decision, double beta) {
  check_muon_momentum(grad, m, direction, decision);
  const float* chosen = decision.data<float>();
  const bool applies = chosen[0] == 1.0f;
  const float multiplier = chosen[1], keep = static_cast<float>(beta),
              add = static_cast<float>(1.0 - beta);
  const float* g = grad.data<float>();
  float* momentum = m.data<float>();
  with_float("direction", direction, [&]<class T>() {
    T* to = direction.data<T>();
    parallel_vectors(grad.numel(), [&](int64_t i, auto lanes) {
      if (!applies) return lanes.store(to + i, Floats{});
      const Floats scaled = lanes.load(g + i) * multiplier, old = lanes.load(momentum + i);
      const Floats next = old + (scaled - old) * add;
      lanes.store(momentum + i, next);
      lanes.store(to + i, scaled + (next - scaled) * keep);
    });
  });
}

void muon_update(Stream&, InOut weight, std::optional<InOut> master, In update, In decision,
                 double lr, double scale, double weight_decay) {
  check_muon_update(weight, master, update, decision);
  if (decision.data<float>()[0] != 1.0f) return;
  const float keep = static_cast<float>(1.0 - lr * weight_decay),
              step = static_cast<float>(lr * scale);
  const int64_t n = weight.numel();
  if (master)
    return apply(master->data<float>(), weight.data<bfloat16>(), update.data<bfloat16>(), n, keep,
                 step);
  with_float("weight", weight, [&]<class T>() {
    apply(weight.data<T>(), weight.data<T>(), update.data<T>(), n, keep, step);
  });
}

void scale_add(Stream&, In x, InOut y, double a, double b) {
  check_scale_add(x, y);
  const float of_x = static_cast<float>(a), of_y = static_cast<float>(b);
  with_float("x", x, [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
    parallel_vectors(x.numel(), [&](int64_t i, auto lanes) {
      lanes.store(to + i, lanes.load(from + i) * of_x + lanes.load(to + i) * of_y);
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

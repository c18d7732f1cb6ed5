// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over one flat group, in one pass:
//   m += (1 − β1)(g − m)   v = β2 v + (1 − β2) g²   w −= lr·λ·w   w −= lr · m̂ / (√v̂ + ε)
// with g the gradient times the clip multiplier, and m̂ = m · decision[2], v̂ = v · decision[3] (bias
// correction). If there is a master, the weights are summed in it (f32), and the weight is its
// rounding, written in the same pass. The decision is read on the device, so that the host need not
// wait for the norm. A skipped step is a selection: decision[0] = 0 returns before anything is
// written, because 0 × NaN is NaN. The floor is memory: 28 bytes per parameter in f32, 30 with bf16
// weight and f32 master.

#include <type_traits>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::cuda {

namespace {

struct Step {
  double lr;
  float keep, one_minus_beta1, beta2, one_minus_beta2, eps;
};

// `master` (n) and `weight` (n) are the same memory if there is no master.
template <class Master, class Weight, int kCount>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(Master* master, Weight* weight, const float* __restrict__ grad,
                 float* __restrict__ m, float* __restrict__ v, const float* __restrict__ decision,
                 int64_t n, Step step) {
  if (decision[0] != 1.0f) return;
  const float multiplier = decision[1], step_size = static_cast<float>(step.lr * decision[2]);
  const float root_correction2 = sqrtf(decision[3]);
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount; i < n;
       i += threads * kCount) {
    const auto gradients = load_pack<float, kCount>(grad + i);
    auto first = load_pack<float, kCount>(m + i), second = load_pack<float, kCount>(v + i);
    auto weights = load_pack<Master, kCount>(master + i);
    Pack<Weight, kCount> rounded;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float g = gradients.value[k] * multiplier;
      const float new_m = first.value[k] + (g - first.value[k]) * step.one_minus_beta1;
      const float new_v = second.value[k] * step.beta2 + g * g * step.one_minus_beta2;
      const float w = widen(weights.value[k]) * step.keep -
                      new_m * step_size / (sqrtf(new_v) * root_correction2 + step.eps);
      first.value[k] = new_m;
      second.value[k] = new_v;
      weights.value[k] = narrow<Master>(w);
      rounded.value[k] = narrow<Weight>(w);
    }
    store_pack(m + i, first);
    store_pack(v + i, second);
    store_pack(weight + i, rounded);
    if constexpr (!std::is_same_v<Master, Weight>) store_pack(master + i, weights);
  }
}

template <class Master, class Weight>
void update(CudaStream& cuda, Master* master, Weight* weight, const float* grad, float* m, float* v,
            const float* decision, int64_t n, const Step& step) {
  constexpr int kCount = 4;
  const auto run = [&]<int kElements>(int64_t first, int64_t count) {
    if (count == 0) return;
    const int64_t blocks = (count / kElements + kThreads - 1) / kThreads;
    adamw_kernel<Master, Weight, kElements>
        <<<static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX)), kThreads, 0,
           cuda.compute()>>>(master + first, weight + first, grad + first, m + first, v + first,
                             decision, count, step);
    check_launch();
  };
  const bool packs = takes_packs<float, kCount>({grad, m, v}) &&
                     takes_packs<Master, kCount>({master}) && takes_packs<Weight, kCount>({weight});
  const int64_t whole = packs ? n / kCount * kCount : 0;
  run.template operator()<kCount>(0, whole);
  run.template operator()<1>(whole, n - whole);
}

}  // namespace

void adamw(Stream& stream, InOut weight, std::optional<InOut> master, In grad, InOut m, InOut v,
           In decision, double lr, double beta1, double beta2, double eps, double weight_decay) {
  CudaStream& cuda = on_cuda(stream);
  check_adamw(weight, master, grad, m, v, decision);
  const int64_t n = weight.numel();
  const Step step = {
      .lr = lr,
      .keep = static_cast<float>(1.0 - lr * weight_decay),
      .one_minus_beta1 = static_cast<float>(1.0 - beta1),
      .beta2 = static_cast<float>(beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - beta2),
      .eps = static_cast<float>(eps),
  };
  const auto run = [&](auto* from, auto* to) {
    update(cuda, from, to, grad.data<float>(), m.data<float>(), v.data<float>(),
           decision.data<float>(), n, step);
  };
  if (master) return run(master->data<float>(), weight.data<bfloat16>());
  with_float("weight", weight, [&]<class T>() { run(weight.data<T>(), weight.data<T>()); });
}

}  // namespace llamaforge::cuda

// Muon (Jordan et al. 2024) apart from its products: momentum, update, and the sums of its
// iteration (see ops.def). The decision is read on the device, and a skipped step is a selection,
// as in adamw.cu. Floors: momentum reads 8 and writes 6 bytes a parameter, update reads 6 and
// writes 6 with a bf16 weight and an f32 master, scale_add reads 2 tensors and writes 1.

#include <type_traits>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::cuda {

namespace {

constexpr int kPack = 4;

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    momentum_kernel(const float* __restrict__ grad, float* __restrict__ m,
                    T* __restrict__ direction, const float* __restrict__ decision, int64_t n,
                    float keep, float add) {
  const bool applies = decision[0] == 1.0f;
  const float multiplier = decision[1];
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount; i < n;
       i += threads * kCount) {
    Pack<T, kCount> out;
    if (!applies) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) out.value[k] = narrow<T>(0.0f);
      store_pack(direction + i, out);
      continue;
    }
    const auto gradients = load_pack<float, kCount>(grad + i);
    auto momentum = load_pack<float, kCount>(m + i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float g = gradients.value[k] * multiplier;
      const float next = momentum.value[k] + (g - momentum.value[k]) * add;
      momentum.value[k] = next;
      out.value[k] = narrow<T>(g + (next - g) * keep);
    }
    store_pack(m + i, momentum);
    store_pack(direction + i, out);
  }
}

// `master` (n) and `weight` (n) are the same memory if there is no master.
template <class Master, class Weight, int kCount>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Master* master, Weight* weight, const Weight* __restrict__ change,
                  const float* __restrict__ decision, int64_t n, float keep, float step) {
  if (decision[0] != 1.0f) return;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount; i < n;
       i += threads * kCount) {
    const auto changes = load_pack<Weight, kCount>(change + i);
    auto sums = load_pack<Master, kCount>(master + i);
    Pack<Weight, kCount> rounded;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float w = widen(sums.value[k]) * keep - widen(changes.value[k]) * step;
      sums.value[k] = narrow<Master>(w);
      rounded.value[k] = narrow<Weight>(w);
    }
    store_pack(weight + i, rounded);
    if constexpr (!std::is_same_v<Master, Weight>) store_pack(master + i, sums);
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    scale_add_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t n, float a, float b) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount; i < n;
       i += threads * kCount) {
    const auto in = load_pack<T, kCount>(x + i);
    auto sum = load_pack<T, kCount>(y + i);
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      sum.value[k] = narrow<T>(widen(in.value[k]) * a + widen(sum.value[k]) * b);
    store_pack(y + i, sum);
  }
}

// Calls run(whether of packs, first element, count) for the whole packs, then for the rest.
template <class Run>
void in_packs(int64_t n, bool packs, int pack, const Run& run) {
  const int64_t whole = packs ? n / pack * pack : 0;
  if (whole > 0) run(std::true_type{}, int64_t{0}, whole);
  if (n > whole) run(std::false_type{}, whole, n - whole);
}

unsigned grid(int64_t count, int pack) {
  return static_cast<unsigned>(
      std::min<int64_t>((count / pack + kThreads - 1) / kThreads, INT32_MAX));
}

template <class Master, class Weight>
void apply(CudaStream& cuda, Master* master, Weight* weight, const Weight* change,
           const float* decision, int64_t n, float keep, float step) {
  const bool packs =
      takes_packs<Master, kPack>({master}) && takes_packs<Weight, kPack>({weight, change});
  in_packs(n, packs, kPack, [&](auto whole, int64_t first, int64_t count) {
    constexpr int kCount = decltype(whole)::value ? kPack : 1;
    update_kernel<Master, Weight, kCount><<<grid(count, kCount), kThreads, 0, cuda.compute()>>>(
        master + first, weight + first, change + first, decision, count, keep, step);
    check_launch();
  });
}

}  // namespace

void muon_momentum(Stream& stream, In grad, InOut m, Out direction, In decision, double beta) {
  CudaStream& cuda = on_cuda(stream);
  check_muon_momentum(grad, m, direction, decision);
  with_float("direction", direction, [&]<class T>() {
    const bool packs = takes_packs<float, kPack>({grad.raw(), m.raw()}) &&
                       takes_packs<T, kPack>({direction.raw()});
    in_packs(grad.numel(), packs, kPack, [&](auto whole, int64_t first, int64_t count) {
      constexpr int kCount = decltype(whole)::value ? kPack : 1;
      momentum_kernel<T, kCount><<<grid(count, kCount), kThreads, 0, cuda.compute()>>>(
          grad.data<float>() + first, m.data<float>() + first, direction.data<T>() + first,
          decision.data<float>(), count, static_cast<float>(beta), static_cast<float>(1.0 - beta));
      check_launch();
    });
  });
}

void muon_update(Stream& stream, InOut weight, std::optional<InOut> master, In update, In decision,
                 double lr, double scale, double weight_decay) {
  CudaStream& cuda = on_cuda(stream);
  check_muon_update(weight, master, update, decision);
  const float keep = static_cast<float>(1.0 - lr * weight_decay),
              step = static_cast<float>(lr * scale);
  const int64_t n = weight.numel();
  const float* chosen = decision.data<float>();
  if (master) {
    return apply(cuda, master->data<float>(), weight.data<bfloat16>(), update.data<bfloat16>(),
                 chosen, n, keep, step);
  }
  with_float("weight", weight, [&]<class T>() {
    apply(cuda, weight.data<T>(), weight.data<T>(), update.data<T>(), chosen, n, keep, step);
  });
}

void scale_add(Stream& stream, In x, InOut y, double a, double b) {
  CudaStream& cuda = on_cuda(stream);
  check_scale_add(x, y);
  with_float("x", x, [&]<class T>() {
    constexpr int kWide = kVector<T>;
    in_packs(x.numel(), takes_packs<T, kWide>({x.raw(), y.raw()}), kWide,
             [&](auto whole, int64_t first, int64_t count) {
               constexpr int kCount = decltype(whole)::value ? kWide : 1;
               scale_add_kernel<T, kCount><<<grid(count, kCount), kThreads, 0, cuda.compute()>>>(
                   x.data<T>() + first, y.data<T>() + first, count, static_cast<float>(a),
                   static_cast<float>(b));
               check_launch();
             });
  });
}

}  // namespace llamaforge::cuda

// Element-wise arithmetic of two tensors with NumPy broadcasting:  y = a op b.
// Reads 2 and writes 1 tensor; bf16 is computed in f32 and rounded once at the end.
//
// a and b have one dtype; a single f32 number may accompany a bf16 tensor, so that x · 0.1 does not
// round 0.1 first. y has the dtype of the tensors, or i32 (0 or 1) for comparisons, and may be the
// same memory as an operand of its shape. The kind is tested once per pack: a branch that all
// threads take alike costs nothing compared with the memory access.
#include "cuda/ops/broadcast.h"
#include "cuda/ops/cuda_ops.h"
#include "ops/checks/elements.h"

namespace llamaforge::cuda {

namespace {

enum class Kind { add, sub, mul, minimum, maximum, div, pow, eq, ne, lt, le, gt, ge };

constexpr std::pair<const char*, Kind> kKinds[] = {{"add", Kind::add},
                                                   {"sub", Kind::sub},
                                                   {"mul", Kind::mul},
                                                   {"minimum", Kind::minimum},
                                                   {"maximum", Kind::maximum},
                                                   {"div", Kind::div},
                                                   {"pow", Kind::pow},
                                                   {"eq", Kind::eq},
                                                   {"ne", Kind::ne},
                                                   {"lt", Kind::lt},
                                                   {"le", Kind::le},
                                                   {"gt", Kind::gt},
                                                   {"ge", Kind::ge}};

constexpr bool compares(Kind kind) { return kind >= Kind::eq; }
constexpr bool takes_integers(Kind kind) { return kind != Kind::div && kind != Kind::pow; }

template <int n, class F, class A, class B, class Y>
__device__ __forceinline__ void each(const A& a, const B& b, Y& y, const F& f) {
#pragma unroll
  for (int i = 0; i < n; ++i) y.value[i] = f(a.value[i], b.value[i]);
}

template <int n, class A, class B, class Y>
__device__ __forceinline__ void calculate(Kind kind, const Pack<A, n>& a, const Pack<B, n>& b,
                                          Pack<Y, n>& y) {
  auto with = [&](auto f) {
    each<n>(a, b, y, [&](A x, B z) { return narrow<Y>(f(widen(x), widen(z))); });
  };
  switch (kind) {
    case Kind::add: return with([](float x, float z) { return x + z; });
    case Kind::sub: return with([](float x, float z) { return x - z; });
    case Kind::mul: return with([](float x, float z) { return x * z; });
    case Kind::div: return with([](float x, float z) { return x / z; });
    case Kind::pow: return with([](float x, float z) { return powf(x, z); });
    case Kind::minimum: return with([](float x, float z) { return x < z || x != x ? x : z; });
    case Kind::maximum: return with([](float x, float z) { return x > z || x != x ? x : z; });
    default: return;
  }
}

// Integers wrap around.
template <int n>
__device__ __forceinline__ void calculate(Kind kind, const Pack<int32_t, n>& a,
                                          const Pack<int32_t, n>& b, Pack<int32_t, n>& y) {
  auto with = [&](auto f) { each<n>(a, b, y, f); };
  switch (kind) {
    case Kind::add:
      return with([](int32_t x, int32_t z) { return int32_t(uint32_t(x) + uint32_t(z)); });
    case Kind::sub:
      return with([](int32_t x, int32_t z) { return int32_t(uint32_t(x) - uint32_t(z)); });
    case Kind::mul:
      return with([](int32_t x, int32_t z) { return int32_t(uint32_t(x) * uint32_t(z)); });
    case Kind::minimum: return with([](int32_t x, int32_t z) { return min(x, z); });
    case Kind::maximum: return with([](int32_t x, int32_t z) { return max(x, z); });
    default: return;
  }
}

__device__ __forceinline__ int32_t comparable(int32_t x) { return x; }
template <class T>
__device__ __forceinline__ float comparable(T x) {
  return widen(x);
}

template <int n, class A, class B>
__device__ __forceinline__ void compare(Kind kind, const Pack<A, n>& a, const Pack<B, n>& b,
                                        Pack<int32_t, n>& y) {
  auto with = [&](auto f) {
    each<n>(a, b, y, [&](A x, B z) { return int32_t(f(comparable(x), comparable(z))); });
  };
  switch (kind) {
    case Kind::eq: return with([](auto x, auto z) { return x == z; });
    case Kind::ne: return with([](auto x, auto z) { return x != z; });
    case Kind::lt: return with([](auto x, auto z) { return x < z; });
    case Kind::le: return with([](auto x, auto z) { return x <= z; });
    case Kind::gt: return with([](auto x, auto z) { return x > z; });
    case Kind::ge: return with([](auto x, auto z) { return x >= z; });
    default: return;
  }
}

template <int kCount, bool kCompares, class A, class B, class Y>
__global__ void binary_kernel(const A* a, const B* b, Y* y,
                              const __grid_constant__ Broadcast<2> plan, Kind kind) {
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount; i < plan.numel;
       i += int64_t{gridDim.x} * blockDim.x * kCount) {
    int64_t offsets[2];
    locate(plan, i, offsets);
    const auto left = load_operand<A, kCount>(a, offsets[0], plan.advances[0]);
    const auto right = load_operand<B, kCount>(b, offsets[1], plan.advances[1]);
    Pack<Y, kCount> result;
    if constexpr (kCompares) {
      compare<kCount>(kind, left, right, result);
    } else {
      calculate<kCount>(kind, left, right, result);
    }
    store_pack(y + i, result);
  }
}

template <bool kCompares, class A, class B, class Y>
void launch(CudaStream& cuda, const Tensor& a, const Tensor& b, const Tensor& y,
            const Broadcast<2>& plan, Kind kind) {
  constexpr int kCount = 8;
  const bool packs = rows_take_packs<kCount>(plan) && takes_packs<Y, kCount>({y.raw()}) &&
                     (!plan.advances[0] || takes_packs<A, kCount>({a.raw()})) &&
                     (!plan.advances[1] || takes_packs<B, kCount>({b.raw()}));
  if (packs) {
    binary_kernel<kCount, kCompares>
        <<<blocks_for(cuda, plan.numel, kThreads * kCount), kThreads, 0, cuda.compute()>>>(
            a.data<A>(), b.data<B>(), y.data<Y>(), plan, kind);
  } else {
    binary_kernel<1, kCompares><<<blocks_for(cuda, plan.numel), kThreads, 0, cuda.compute()>>>(
        a.data<A>(), b.data<B>(), y.data<Y>(), plan, kind);
  }
  check_launch();
}

template <class A, class B, class Y>
void run(CudaStream& cuda, const Tensor& a, const Tensor& b, const Tensor& y,
         const Broadcast<2>& plan, Kind kind) {
  if (compares(kind)) return launch<true, A, B, int32_t>(cuda, a, b, y, plan, kind);
  launch<false, A, B, Y>(cuda, a, b, y, plan, kind);
}

Kind find(const std::string& name) {
  for (const auto& [known, kind] : kKinds) {
    if (name == known) return kind;
  }
  refuse_kind(name);
}

}  // namespace

void binary(Stream& stream, In a, In b, Out y, std::string name) {
  const Kind kind = find(name);
  const bool mixed = a.dtype != b.dtype;
  check_binary(name, compares(kind), a, b, y);
  const auto plan = plan_broadcast<2, uint32_t>(y.shape, {&a, &b});
  CudaStream& cuda = on_cuda(stream);
  if (a.dtype == DType::i32) {
    if (!takes_integers(kind)) refuse_integers(name);
    return run<int32_t, int32_t, int32_t>(cuda, a, b, y, plan, kind);
  }
  if (!mixed)
    return with_float("a", a, [&]<class T>() { run<T, T, T>(cuda, a, b, y, plan, kind); });
  if (a.dtype == DType::f32) return run<float, bfloat16, bfloat16>(cuda, a, b, y, plan, kind);
  run<bfloat16, float, bfloat16>(cuda, a, b, y, plan, kind);
}

}  // namespace llamaforge::cuda

// Element-wise functions of one tensor, and their gradients:  y = f(x),  dx = dy · f'(x).
// Forward reads 1 and writes 1 tensor, backward reads 2 and writes 1. bf16 is computed in f32.
// Backward starts from x, not y: x is alive anyway where such functions are used, and is exact
// where y is rounded to bf16. y may be the memory of x, and dx that of dy or x. At kinks the
// gradient is 0 (abs and relu at 0), whatever dy is. It is selected, because a product would turn 0
// and inf into NaN. If f'(x) may overflow although dy · f'(x) does not, f'(x) is not computed: dy
// is divided by x step by step instead.
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/elements.h"

namespace llamaforge::cuda {

namespace {

enum class Kind {
  neg,
  abs,
  square,
  relu,
  exp,
  log,
  sqrt,
  rsqrt,
  reciprocal,
  tanh,
  sigmoid,
  silu,
  gelu,
  sin,
  cos
};

constexpr std::pair<const char*, Kind> kKinds[] = {
    {"neg", Kind::neg},   {"abs", Kind::abs},     {"square", Kind::square},
    {"relu", Kind::relu}, {"exp", Kind::exp},     {"log", Kind::log},
    {"sqrt", Kind::sqrt}, {"rsqrt", Kind::rsqrt}, {"tanh", Kind::tanh},
    {"silu", Kind::silu}, {"gelu", Kind::gelu},   {"reciprocal", Kind::reciprocal},
    {"sin", Kind::sin},   {"cos", Kind::cos},     {"sigmoid", Kind::sigmoid}};

constexpr bool takes_integers(Kind kind) { return kind <= Kind::relu; }

// The fast forms are far more exact than bf16 needs; the accurate ones alone take as long as the
// memory access.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  return sizeof(T) == 2 ? __expf(x) : expf(x);
}
template <class T>
__device__ __forceinline__ float quotient(float x, float y) {
  return sizeof(T) == 2 ? __fdividef(x, y) : x / y;
}
template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  return quotient<T>(1.0f, 1.0f + exponential<T>(-x));
}
// The tanh form is x · sigmoid(2u): the sigmoid keeps its relative precision for negative x, where
// 1 + tanh cancels.
__device__ __forceinline__ float gelu_twice_u(float x) {
  return x * (1.5957691216f + 0.0713548163f * x * x);
}

// Beyond these values silu and gelu are flat or equal x, so their slopes are 0 or 1. There 0 times
// an infinity, x or x², would be NaN.
constexpr float kFlatSilu = 200, kFlatGelu = 20;

template <class T>
__device__ __forceinline__ float value_of(Kind kind, float x) {
  switch (kind) {
    case Kind::neg: return -x;
    case Kind::abs: return fabsf(x);
    case Kind::square: return x * x;
    case Kind::relu: return x <= 0.0f ? 0.0f : x;
    case Kind::exp: return exponential<T>(x);
    case Kind::log: return logf(x);
    case Kind::sqrt: return sqrtf(x);
    case Kind::rsqrt: return 1.0f / sqrtf(x);
    case Kind::reciprocal: return 1.0f / x;
    case Kind::tanh: return tanhf(x);
    case Kind::sigmoid: return sigmoid<T>(x);
    case Kind::silu: {
      const float low = at_least(x, -kFlatSilu);
      return low * sigmoid<T>(low);
    }
    case Kind::gelu: {
      const float low = at_least(x, -kFlatGelu);
      return low * sigmoid<T>(gelu_twice_u(low));
    }
    case Kind::sin: return sinf(x);
    case Kind::cos: return cosf(x);
  }
  return 0.0f;
}

template <class T>
__device__ __forceinline__ float gradient_of(Kind kind, float dy, float x) {
  switch (kind) {
    case Kind::neg: return -dy;
    case Kind::abs: return x == 0.0f ? 0.0f : x != x ? x : x < 0.0f ? -dy : dy;
    case Kind::square: return 2.0f * (dy * x);
    case Kind::relu: return x <= 0.0f ? 0.0f : dy;
    case Kind::exp: return dy * exponential<T>(x);
    case Kind::log: return dy / x;
    case Kind::sqrt: return dy / (2.0f * sqrtf(x));
    case Kind::rsqrt: return dy / (-2.0f * sqrtf(x)) / x;
    case Kind::reciprocal: return -(dy / x) / x;
    case Kind::tanh: {
      // 1 - tanh² without its cancellation: 4e / (e + 1)², e = exp(-2|x|).
      const float e = exponential<T>(-2.0f * fabsf(x)), sum = e + 1.0f;
      return dy * quotient<T>(4.0f * e, sum * sum);
    }
    case Kind::sigmoid: {
      const float e = exponential<T>(-fabsf(x)), sum = e + 1.0f;
      return dy * quotient<T>(e, sum * sum);
    }
    case Kind::silu: {
      const float near = at_most(at_least(x, -kFlatSilu), kFlatSilu), s = sigmoid<T>(near);
      return dy * (s * (1.0f + near * (1.0f - s)));
    }
    case Kind::gelu: {
      const float near = at_most(at_least(x, -kFlatGelu), kFlatGelu),
                  s = sigmoid<T>(gelu_twice_u(near));
      return dy * (s + near * s * (1.0f - s) * (1.5957691216f + 0.2140644488f * near * near));
    }
    case Kind::sin: return dy * cosf(x);
    case Kind::cos: return dy * -sinf(x);
  }
  return 0.0f;
}

// Integers wrap around.
__device__ __forceinline__ int32_t whole_value_of(Kind kind, int32_t x) {
  const auto bits = static_cast<uint32_t>(x);
  switch (kind) {
    case Kind::neg: return static_cast<int32_t>(0 - bits);
    case Kind::abs: return static_cast<int32_t>(x < 0 ? 0 - bits : bits);
    case Kind::square: return static_cast<int32_t>(bits * bits);
    default: return x < 0 ? 0 : x;
  }
}

// Calls `use` with the kind as a constant, so that there is one branch per pack, not one per
// element.
template <class Use>
__device__ __forceinline__ void with_constant(Kind kind, const Use& use) {
  switch (kind) {
#define LF_CASE(name) \
  case Kind::name: return use(std::integral_constant<Kind, Kind::name>{});
    LF_CASE(neg)
    LF_CASE(abs)
    LF_CASE(square)
    LF_CASE(relu)
    LF_CASE(exp)
    LF_CASE(log)
    LF_CASE(sqrt)
    LF_CASE(rsqrt)
    LF_CASE(reciprocal)
    LF_CASE(tanh)
    LF_CASE(sigmoid)
    LF_CASE(silu)
    LF_CASE(gelu)
    LF_CASE(sin)
    LF_CASE(cos)
#undef LF_CASE
  }
}

template <class T>
struct Forward {
  const T* x;
  T* y;
  __device__ T operator()(Kind kind, T in) const {
    if constexpr (std::is_same_v<T, int32_t>) {
      return whole_value_of(kind, in);
    } else {
      return narrow<T>(value_of<T>(kind, widen(in)));
    }
  }
};

template <int kCount, class T>
__global__ void unary_kernel(Forward<T> f, int64_t n, Kind kind) {
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount; i < n;
       i += int64_t{gridDim.x} * blockDim.x * kCount) {
    if (i + kCount <= n) {
      auto pack = load_pack<T, kCount>(f.x + i);
      with_constant(kind, [&](auto constant) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) pack.value[k] = f(constant, pack.value[k]);
      });
      store_pack(f.y + i, pack);
    } else {
      for (int64_t k = i; k < n; ++k) f.y[k] = f(kind, f.x[k]);
    }
  }
}

template <int kCount, class T>
__global__ void unary_backward_kernel(const T* dy, const T* x, T* dx, int64_t n, Kind kind) {
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount; i < n;
       i += int64_t{gridDim.x} * blockDim.x * kCount) {
    if (i + kCount <= n) {
      const auto in = load_pack<T, kCount>(x + i);
      auto pack = load_pack<T, kCount>(dy + i);
      with_constant(kind, [&](auto constant) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          pack.value[k] =
              narrow<T>(gradient_of<T>(constant, widen(pack.value[k]), widen(in.value[k])));
        }
      });
      store_pack(dx + i, pack);
    } else {
      for (int64_t k = i; k < n; ++k)
        dx[k] = narrow<T>(gradient_of<T>(kind, widen(dy[k]), widen(x[k])));
    }
  }
}

template <class T>
void forward(CudaStream& cuda, const Tensor& x, const Tensor& y, Kind kind) {
  constexpr int kCount = kVector<T>;
  const Forward<T> f{x.data<T>(), y.data<T>()};
  const int64_t n = x.numel();
  if (aligned16({f.x, f.y})) {
    unary_kernel<kCount>
        <<<blocks_for(cuda, n, kThreads * kCount), kThreads, 0, cuda.compute()>>>(f, n, kind);
  } else {
    unary_kernel<1><<<blocks_for(cuda, n), kThreads, 0, cuda.compute()>>>(f, n, kind);
  }
  check_launch();
}

template <class T>
void backward(CudaStream& cuda, const Tensor& dy, const Tensor& x, const Tensor& dx, Kind kind) {
  constexpr int kCount = kVector<T>;
  const int64_t n = x.numel();
  if (aligned16({dy.raw(), x.raw(), dx.raw()})) {
    unary_backward_kernel<kCount>
        <<<blocks_for(cuda, n, kThreads * kCount), kThreads, 0, cuda.compute()>>>(
            dy.data<T>(), x.data<T>(), dx.data<T>(), n, kind);
  } else {
    unary_backward_kernel<1><<<blocks_for(cuda, n), kThreads, 0, cuda.compute()>>>(
        dy.data<T>(), x.data<T>(), dx.data<T>(), n, kind);
  }
  check_launch();
}

Kind find(const std::string& name) {
  for (const auto& [known, kind] : kKinds) {
    if (name == known) return kind;
  }
  refuse_kind(name);
}

}  // namespace

void unary(Stream& stream, In x, Out y, std::string name) {
  check_unary(x, y);
  const Kind kind = find(name);
  CudaStream& cuda = on_cuda(stream);
  if (x.dtype == DType::i32) {
    if (!takes_integers(kind)) refuse_integers(name);
    return forward<int32_t>(cuda, x, y, kind);
  }
  with_float("x", x, [&]<class T>() { forward<T>(cuda, x, y, kind); });
}

void unary_backward(Stream& stream, In dy, In x, Out dx, std::string name) {
  check_unary_backward(dy, x, dx);
  const Kind kind = find(name);
  with_float("x", x, [&]<class T>() { backward<T>(on_cuda(stream), dy, x, dx, kind); });
}

}  // namespace llamaforge::cuda

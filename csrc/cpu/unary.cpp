// Element-wise functions of one tensor, and their gradients:  y = f(x),  dx = dy · f'(x).
// Forward reads 1 tensor and writes 1, backward reads 2 and writes 1. bf16 is computed in f32.
// Backward starts from x, not y: x is alive anyway where such functions are used, and x is exact
// where y is rounded to bf16.
// y may be x, dx may be dy or x. At kinks the gradient is 0 (abs and relu at 0), whatever dy is: it
// is selected, because a product would make NaN of 0 and inf. Where f'(x) may overflow although dy
// · f'(x) does not, f'(x) is not computed: dy is divided by x, step by step.

#include "cpu/kernel.h"
#include "cpu/unary_math.h"
#include "ops/checks/elements.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// An operation has value(x), and either gradient(dy, x) = dy · f'(x) or slope(x) = f'(x). Integer
// kinds also take int32_t, which wraps around.

struct Negative {
  Floats value(Floats x) const { return -x; }
  Floats gradient(Floats dy, Floats) const { return -dy; }
  uint32_t whole(uint32_t x) const { return 0 - x; }
};
struct Absolute {
  Floats value(Floats x) const { return abs(x); }
  Floats gradient(Floats dy, Floats x) const {
    const Floats signed_dy = x < 0.0f ? -dy : dy;
    return x == 0.0f ? broadcast(0.0f) : x == x ? signed_dy : x;
  }
  uint32_t whole(uint32_t x) const { return int32_t(x) < 0 ? 0 - x : x; }
};
struct Square {
  Floats value(Floats x) const { return x * x; }
  Floats gradient(Floats dy, Floats x) const { return 2.0f * (dy * x); }
  uint32_t whole(uint32_t x) const { return x * x; }
};
struct Relu {
  Floats value(Floats x) const { return x <= 0.0f ? broadcast(0.0f) : x; }
  Floats gradient(Floats dy, Floats x) const { return x <= 0.0f ? broadcast(0.0f) : dy; }
  uint32_t whole(uint32_t x) const { return int32_t(x) < 0 ? 0 : x; }
};
struct Exponential {
  Floats value(Floats x) const { return exp(x); }
  Floats slope(Floats x) const { return exp(x); }
};
struct Logarithm {
  Floats value(Floats x) const { return log(x); }
  Floats gradient(Floats dy, Floats x) const { return dy / x; }
};
struct SquareRoot {
  Floats value(Floats x) const { return sqrt(x); }
  Floats gradient(Floats dy, Floats x) const { return dy / (2.0f * sqrt(x)); }
};
struct ReciprocalSquareRoot {
  Floats value(Floats x) const { return 1.0f / sqrt(x); }
  Floats gradient(Floats dy, Floats x) const { return dy / (-2.0f * sqrt(x)) / x; }
};
struct Reciprocal {
  Floats value(Floats x) const { return 1.0f / x; }
  Floats gradient(Floats dy, Floats x) const { return -(dy / x) / x; }
};
struct HyperbolicTangent {
  Floats value(Floats x) const { return tanh(x); }
  // 1 - tanh² without its cancellation: 4e / (e + 1)², e = exp(-2|x|).
  Floats slope(Floats x) const {
    const Floats e = exp(-2.0f * abs(x));
    const Floats sum = e + 1.0f;
    return 4.0f * e / (sum * sum);
  }
};
struct Sigmoid {
  Floats value(Floats x) const { return sigmoid(x); }
  Floats slope(Floats x) const {
    const Floats e = exp(-abs(x));
    const Floats sum = e + 1.0f;
    return e / (sum * sum);
  }
};
struct Silu {
  Floats value(Floats x) const { return silu(x); }
  Floats slope(Floats x) const { return silu_slope(x); }
};
// The tanh form: x/2 · (1 + tanh(u)) = x · sigmoid(2u), u = sqrt(2/pi) · (x + 0.044715 x³). The
// sigmoid keeps its relative precision for negative x, where 1 + tanh cancels.
struct Gelu {
  static constexpr float kFlatGelu = 20;
  static Floats twice_u(Floats x) { return x * (1.5957691216f + 0.0713548163f * x * x); }
  Floats value(Floats x) const {
    x = at_least(x, -kFlatGelu);
    return x * sigmoid(twice_u(x));
  }
  // The slope beyond kFlatGelu is 0 or 1; there x² overflows, and inf times 0 would be NaN.
  Floats slope(Floats x) const {
    x = clamp(x, -kFlatGelu, kFlatGelu);
    const Floats s = sigmoid(twice_u(x));
    return s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644488f * x * x);
  }
};
struct Sine {
  Floats value(Floats x) const { return sin(x); }
  Floats slope(Floats x) const { return cos(x); }
};
struct Cosine {
  Floats value(Floats x) const { return cos(x); }
  Floats slope(Floats x) const { return -sin(x); }
};

// Calls `use` with the function of the given kind.
template <class Use>
void with_kind(const std::string& kind, const Use& use) {
  if (kind == "neg") return use(Negative{});
  if (kind == "abs") return use(Absolute{});
  if (kind == "exp") return use(Exponential{});
  if (kind == "log") return use(Logarithm{});
  if (kind == "sqrt") return use(SquareRoot{});
  if (kind == "rsqrt") return use(ReciprocalSquareRoot{});
  if (kind == "square") return use(Square{});
  if (kind == "reciprocal") return use(Reciprocal{});
  if (kind == "tanh") return use(HyperbolicTangent{});
  if (kind == "sigmoid") return use(Sigmoid{});
  if (kind == "silu") return use(Silu{});
  if (kind == "gelu") return use(Gelu{});
  if (kind == "relu") return use(Relu{});
  if (kind == "sin") return use(Sine{});
  if (kind == "cos") return use(Cosine{});
  refuse_kind(kind);
}

template <class T, class F>
void forward(const In& x, Out& y, const F& f) {
  const T* from = x.data<T>();
  T* to = y.data<T>();
  parallel_vectors(x.numel(),
                   [&](int64_t i, auto v) { v.store(to + i, f.value(v.load(from + i))); });
}

template <class T, class F>
void backward(const In& dy, const In& x, Out& dx, const F& f) {
  const T* gradient = dy.data<T>();
  const T* from = x.data<T>();
  T* to = dx.data<T>();
  parallel_vectors(x.numel(), [&](int64_t i, auto v) {
    const Floats d = v.load(gradient + i), in = v.load(from + i);
    if constexpr (requires { f.gradient(d, in); }) {
      v.store(to + i, f.gradient(d, in));
    } else {
      v.store(to + i, d * f.slope(in));
    }
  });
}

}  // namespace

void unary(Stream&, In x, Out y, std::string kind) {
  check_unary(x, y);
  with_kind(kind, [&](auto f) {
    if (x.dtype != DType::i32) {
      return with_float("x", x, [&]<class T>() { forward<T>(x, y, f); });
    }
    if constexpr (requires { f.whole(0u); }) {
      const int32_t* from = x.data<int32_t>();
      int32_t* to = y.data<int32_t>();
      parallel_for(x.numel(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          to[i] = static_cast<int32_t>(f.whole(static_cast<uint32_t>(from[i])));
      });
    } else {
      refuse_integers(kind);
    }
  });
}

void unary_backward(Stream&, In dy, In x, Out dx, std::string kind) {
  check_unary_backward(dy, x, dx);
  with_kind(kind,
            [&](auto f) { with_float("x", x, [&]<class T>() { backward<T>(dy, x, dx, f); }); });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

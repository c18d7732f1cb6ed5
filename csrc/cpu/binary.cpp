// Element-wise arithmetic of two tensors with NumPy broadcasting:  y = a op b.
// The kernel reads 2 tensors and writes 1, so it is bound by memory, except for div and pow. bf16
// is computed in f32 and rounded once at the end.
//
// a and b have one dtype; a single f32 number may accompany a bf16 tensor, so that x · 0.1 does not
// round 0.1 first.
// y has the dtype of the tensors, or i32 (0 or 1) for comparisons. y may be larger than the
// broadcast shape of a and b (broadcastTo works that way), and may share memory with an operand of
// y's shape.

#include <type_traits>

#include "cpu/binary_power.h"
#include "cpu/broadcast.h"
#include "cpu/cpu_ops.h"
#include "cpu/simd.h"
#include "ops/checks/elements.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// ---- the operations: on vectors of floats, and on integers, which wrap around

struct Add {
  Floats operator()(Floats a, Floats b) const { return a + b; }
  uint32_t operator()(uint32_t a, uint32_t b) const { return a + b; }
};
struct Subtract {
  Floats operator()(Floats a, Floats b) const { return a - b; }
  uint32_t operator()(uint32_t a, uint32_t b) const { return a - b; }
};
struct Multiply {
  Floats operator()(Floats a, Floats b) const { return a * b; }
  uint32_t operator()(uint32_t a, uint32_t b) const { return a * b; }
};
struct Minimum {
  Floats operator()(Floats a, Floats b) const { return minimum(a, b); }
  uint32_t operator()(uint32_t a, uint32_t b) const { return int32_t(a) < int32_t(b) ? a : b; }
};
struct Maximum {
  Floats operator()(Floats a, Floats b) const { return maximum(a, b); }
  uint32_t operator()(uint32_t a, uint32_t b) const { return int32_t(a) > int32_t(b) ? a : b; }
};
struct Divide {
  Floats operator()(Floats a, Floats b) const { return a / b; }
};
struct Power {
  Floats operator()(Floats a, Floats b) const { return power(a, b); }
};

// A comparison of two vectors is -1 where it holds.
#define LF_COMPARISON(Name, op)                                         \
  struct Name {                                                         \
    Ints operator()(Floats a, Floats b) const { return -Ints(a op b); } \
    int32_t operator()(int32_t a, int32_t b) const { return a op b; }   \
  };
LF_COMPARISON(Equal, ==)
LF_COMPARISON(NotEqual, !=)
LF_COMPARISON(Less, <)
LF_COMPARISON(LessEqual, <=)
LF_COMPARISON(Greater, >)
LF_COMPARISON(GreaterEqual, >=)
#undef LF_COMPARISON

using LF_CPU_NAMESPACE::store;
using LF_CPU_NAMESPACE::store_partial;
LF_INLINE void store(int32_t* p, Ints v) { std::memcpy(p, &v, sizeof v); }
LF_INLINE void store_partial(int32_t* p, Ints v, int64_t n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(int32_t));
}

// ---- one row

// Each operand either advances along the row or is one value for the whole row.
template <bool kMoveA, bool kMoveB, class A, class B, class Y, class Op>
void float_row(const A* a, const B* b, Y* y, int64_t n, const Op& op) {
  // x - 0 keeps the sign of a zero, which 0 + x would lose
  const Floats one_a = to_float(*a) - Floats{};
  const Floats one_b = to_float(*b) - Floats{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(y + i, op(kMoveA ? load(a + i) : one_a, kMoveB ? load(b + i) : one_b));
  if (i == n) return;
  const Floats rest_a = kMoveA ? load_partial(a + i, n - i) : one_a;
  const Floats rest_b = kMoveB ? load_partial(b + i, n - i) : one_b;
  store_partial(y + i, op(rest_a, rest_b), n - i);
}

template <bool kMoveA, bool kMoveB, class Op>
void integer_row(const int32_t* a, const int32_t* b, int32_t* y, int64_t n, const Op& op) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t left = a[kMoveA ? i : 0];
    const int32_t right = b[kMoveB ? i : 0];
    y[i] = static_cast<int32_t>(op(left, right));
  }
}

template <class A, class B, class Y, class Op>
void run(const In& a, const In& b, Out& y, const BroadcastPlan<2>& plan, const Op& op) {
  const A* a_data = a.data<A>();
  const B* b_data = b.data<B>();
  Y* y_data = y.data<Y>();
  for_each_row(plan, [&](int64_t position, const std::array<int64_t, 2>& offsets, int64_t n) {
    const A* from_a = a_data + offsets[0];
    const B* from_b = b_data + offsets[1];
    Y* to = y_data + position;
    const auto row = [&](auto move_a, auto move_b) {
      if constexpr (std::is_same_v<A, int32_t>) {
        integer_row<move_a.value, move_b.value>(from_a, from_b, to, n, op);
      } else {
        float_row<move_a.value, move_b.value>(from_a, from_b, to, n, op);
      }
    };
    constexpr std::true_type moves;
    constexpr std::false_type stays;
    if (plan.advances[0]) {
      plan.advances[1] ? row(moves, moves) : row(moves, stays);
    } else {
      plan.advances[1] ? row(stays, moves) : row(stays, stays);
    }
  });
}

// ---- dispatch

template <class Op>
constexpr bool takes_integers = std::is_invocable_v<Op, int32_t, int32_t>;
template <class Op>
constexpr bool compares = std::is_same_v<std::invoke_result_t<Op, Floats, Floats>, Ints>;

template <class Op>
void run_floats(const In& a, const In& b, Out& y, const BroadcastPlan<2>& plan, const Op& op) {
  const auto with = [&](auto a_zero, auto b_zero) {
    using A = decltype(a_zero);
    using B = decltype(b_zero);
    using Wide = std::conditional_t<std::is_same_v<A, B>, A, bfloat16>;
    using Y = std::conditional_t<compares<Op>, int32_t, Wide>;
    run<A, B, Y>(a, b, y, plan, op);
  };
  if (a.dtype == DType::f32) {
    b.dtype == DType::f32 ? with(float{}, float{}) : with(float{}, bfloat16{});
  } else {
    b.dtype == DType::f32 ? with(bfloat16{}, float{}) : with(bfloat16{}, bfloat16{});
  }
}

template <class Op>
void run_kind(const In& a, const In& b, Out& y, const std::string& kind, const Op& op) {
  check_binary(kind, compares<Op>, a, b, y);
  const BroadcastPlan<2> plan = plan_broadcast<2>(y.shape, {&a, &b});
  if (a.dtype != DType::i32) return run_floats(a, b, y, plan, op);
  if constexpr (takes_integers<Op>) {
    run<int32_t, int32_t, int32_t>(a, b, y, plan, op);
  } else {
    refuse_integers(kind);
  }
}

}  // namespace

void binary(Stream&, In a, In b, Out y, std::string kind) {
  if (kind == "add") return run_kind(a, b, y, kind, Add{});
  if (kind == "sub") return run_kind(a, b, y, kind, Subtract{});
  if (kind == "mul") return run_kind(a, b, y, kind, Multiply{});
  if (kind == "div") return run_kind(a, b, y, kind, Divide{});
  if (kind == "minimum") return run_kind(a, b, y, kind, Minimum{});
  if (kind == "maximum") return run_kind(a, b, y, kind, Maximum{});
  if (kind == "pow") return run_kind(a, b, y, kind, Power{});
  if (kind == "eq") return run_kind(a, b, y, kind, Equal{});
  if (kind == "ne") return run_kind(a, b, y, kind, NotEqual{});
  if (kind == "lt") return run_kind(a, b, y, kind, Less{});
  if (kind == "le") return run_kind(a, b, y, kind, LessEqual{});
  if (kind == "gt") return run_kind(a, b, y, kind, Greater{});
  if (kind == "ge") return run_kind(a, b, y, kind, GreaterEqual{});
  refuse_kind(kind);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

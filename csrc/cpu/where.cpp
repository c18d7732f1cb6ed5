// y = condition ? a : b, with NumPy broadcasting. condition is i32, and true where it is not 0.
// a, b and y have one dtype and are copied bit by bit. The kernel reads 3 tensors and writes 1.

#include <type_traits>

#include "cpu/broadcast.h"
#include "cpu/kernel.h"
#include "ops/checks/indexing.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

template <bool kMoveC, bool kMoveA, bool kMoveB, class Bits>
void select_row(const int32_t* c, const Bits* a, const Bits* b, Bits* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const Bits if_true = a[kMoveA ? i : 0];
    const Bits if_false = b[kMoveB ? i : 0];
    y[i] = c[kMoveC ? i : 0] != 0 ? if_true : if_false;
  }
}

// Turns run-time booleans into template arguments, one after the other.
template <class Use>
void with_flag(bool flag, const Use& use) {
  flag ? use(std::true_type{}) : use(std::false_type{});
}

template <class Bits>
void select(const In& condition, const In& a, const In& b, Out& y) {
  const BroadcastPlan<3> plan = plan_broadcast<3>(y.shape, {&condition, &a, &b});
  const int32_t* c = condition.data<int32_t>();
  const Bits* a_data = static_cast<const Bits*>(a.raw());
  const Bits* b_data = static_cast<const Bits*>(b.raw());
  Bits* y_data = static_cast<Bits*>(y.raw());
  for_each_row(plan, [&](int64_t position, const std::array<int64_t, 3>& offsets, int64_t n) {
    with_flag(plan.advances[0], [&](auto move_c) {
      with_flag(plan.advances[1], [&](auto move_a) {
        with_flag(plan.advances[2], [&](auto move_b) {
          select_row<move_c.value, move_a.value, move_b.value>(
              c + offsets[0], a_data + offsets[1], b_data + offsets[2], y_data + position, n);
        });
      });
    });
  });
}

}  // namespace

void where(Stream&, In condition, In a, In b, Out y) {
  check_where(condition, a, b, y);
  size_of(y.dtype) == 2 ? select<uint16_t>(condition, a, b, y)
                        : select<uint32_t>(condition, a, b, y);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

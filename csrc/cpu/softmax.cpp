// softmax over the last axis:
//   forward   y = exp(x - max) / sum;                log form:  y = x - max - log(sum)
//   backward  dx = y · (dy - sum(dy · y) / sum(y));  log form:  dx = dy - exp(y) · sum(dy)
// sum(y) is 1 except for the rounding of y to bf16. Without the division, dx would keep a part of
// the offset that all of dy share.
// x (N,D) -> y (N,D); a row stays in the cache over its three passes, so memory is read and written
// once. Sums of a row are f32 over kBlock numbers, then f64. bf16 computes exp again in the last
// pass, because storing it would round it twice.
// A row that is -inf throughout, or holds +inf or NaN, gives NaN, as in PyTorch.

#include <limits>

#include "cpu/kernel.h"
#include "cpu/unary_math.h"
#include "ops/checks/softmax.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

constexpr int64_t kBlock = 2048;

template <class T>
float row_maximum(const T* x, int64_t n) {
  Floats highest = broadcast(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) highest = maximum(highest, load(x + i));
  float result = horizontal_maximum(highest);
  for (; i < n; ++i) {
    const float value = to_float(x[i]);
    if (value > result || value != value) result = value;
  }
  return result;
}

// Returns the sum of term(i, vector) over a row. The caller's `term` must be 0 in the lanes past
// the end.
template <class Term>
double row_sum(int64_t n, const Term& term) {
  double total = 0;
  for (int64_t block = 0; block < n; block += kBlock) {
    Floats part = {};
    for_each_vector(block, std::min(n, block + kBlock),
                    [&](int64_t i, auto v) { part += term(i, v); });
    total += horizontal_sum(part);
  }
  return total;
}

// Returns exp(x - highest), and 0 in the lanes past the end of the row.
template <class T>
LF_INLINE Floats shifted_exp(const T* x, Floats highest, WholeVector v) {
  return exp(v.load(x) - highest);
}
template <class T>
LF_INLINE Floats shifted_exp(const T* x, Floats highest, PartialVector v) {
  float lane[kLanes] = {};
  v.store(lane, exp(v.load(x) - highest));
  return load(lane);
}

template <class T>
void softmax_row(const T* x, T* y, int64_t n, bool log_form) {
  const float highest = row_maximum(x, n);
  const Floats shift = broadcast(highest);
  const double sum = row_sum(n, [&](int64_t i, auto v) { return shifted_exp(x + i, shift, v); });
  if (log_form) {
    const Floats log_sum = broadcast(static_cast<float>(std::log(sum)));
    for_each_vector(0, n,
                    [&](int64_t i, auto v) { v.store(y + i, (v.load(x + i) - shift) - log_sum); });
  } else {
    const Floats factor = broadcast(static_cast<float>(1 / sum));
    for_each_vector(
        0, n, [&](int64_t i, auto v) { v.store(y + i, shifted_exp(x + i, shift, v) * factor); });
  }
}

template <class T>
void backward_row(const T* dy, const T* y, T* dx, int64_t n, bool log_form) {
  if (log_form) {
    const float sum =
        static_cast<float>(row_sum(n, [&](int64_t i, auto v) { return v.load(dy + i); }));
    // exp(y) is positive unless y is -inf. Where exp(y) rounds to 0, 0 times an infinite sum would
    // be NaN.
    const Floats least = broadcast(std::isinf(sum) ? std::numeric_limits<float>::min() : 0.0f);
    const Floats nothing = broadcast(-std::numeric_limits<float>::infinity());
    for_each_vector(0, n, [&](int64_t i, auto v) {
      const Floats value = v.load(y + i);
      const Floats p = exp(value);
      v.store(dx + i, v.load(dy + i) - ((p < least) & (value > nothing) ? least : p) * sum);
    });
  } else {
    const double dot =
        row_sum(n, [&](int64_t i, auto v) { return v.load(dy + i) * v.load(y + i); });
    const double sum = row_sum(n, [&](int64_t i, auto v) { return v.load(y + i); });
    const Floats mean = broadcast(static_cast<float>(dot / sum));
    for_each_vector(
        0, n, [&](int64_t i, auto v) { v.store(dx + i, v.load(y + i) * (v.load(dy + i) - mean)); });
  }
}

}  // namespace

// y may be the same memory as x.
void softmax(Stream&, In x, Out y, bool log) {
  check_softmax(x, y);
  const int64_t n = x.dim(-1);
  with_float("x", x, [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
    parallel_rows(x.numel() / n, n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) softmax_row(from + row * n, to + row * n, n, log);
    });
  });
}

// dx may be the same memory as dy or y.
void softmax_backward(Stream&, In dy, In y, Out dx, bool log) {
  check_softmax_backward(dy, y, dx);
  const int64_t n = y.dim(-1);
  with_float("y", y, [&]<class T>() {
    const T* gradient = dy.data<T>();
    const T* from = y.data<T>();
    T* to = dx.data<T>();
    parallel_rows(y.numel() / n, n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        backward_row(gradient + row * n, from + row * n, to + row * n, n, log);
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

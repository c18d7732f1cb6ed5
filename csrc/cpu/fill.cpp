// Constants and ramps: fill writes `value`, arange writes start + i · step, both converted to the
// tensor's dtype. A ramp is computed in double and rounded once, so that long ramps do not drift
// and every device has the same bits. For i32 the values must be whole numbers in range.

#include "ops/checks/fill.h"
#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

template <class T>
void fill_with(T* x, int64_t n, T value) {
  parallel_chunks(n, kChunk, 1,
                  [&](int64_t begin, int64_t end) { std::fill(x + begin, x + end, value); });
}

template <class T, class Convert>
void ramp(T* x, int64_t n, double start, double step, Convert convert) {
  parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      x[i] = convert(std::fma(static_cast<double>(i), step, start));
  });
}

}  // namespace

void fill(Stream&, Out x, double value) {
  check_fill(x, value);
  if (x.dtype == DType::i32) {
    return fill_with(x.data<int32_t>(), x.numel(), static_cast<int32_t>(value));
  }
  with_float("x", x, [&]<class T>() {
    fill_with(x.data<T>(), x.numel(), from_float<T>(static_cast<float>(value)));
  });
}

void arange(Stream&, Out x, double start, double step) {
  check_arange(x, start, step);
  const int64_t n = x.numel();
  if (x.dtype == DType::i32) {
    return ramp(x.data<int32_t>(), n, start, step,
                [](double v) { return static_cast<int32_t>(v); });
  }
  with_float("x", x, [&]<class T>() {
    ramp(x.data<T>(), n, start, step,
         [](double v) { return from_float<T>(static_cast<float>(v)); });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

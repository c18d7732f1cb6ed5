// Constants and ramps: fill writes `value`, arange writes start + i · step (computed in double, so that long ramps do
// not drift), both converted to the tensor's dtype. For i32 the values must be whole numbers in range.

#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

void check_whole(const char* name, double value) {
  if (!(value >= INT32_MIN && value <= INT32_MAX) || value != std::floor(value)) {
    throw Error("ERR_ARGUMENT", format("expected {} to be a whole number of 32 bits for dtype i32, got {}", name, value));
  }
}

template <class T> void fill_with(T* x, int64_t n, T value) {
  parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) { std::fill(x + begin, x + end, value); });
}

template <class T, class Convert> void ramp(T* x, int64_t n, double start, double step, Convert convert) {
  parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] = convert(start + static_cast<double>(i) * step);
  });
}

}  // namespace

void fill(Stream&, Out x, double value) {
  if (x.dtype == DType::i32) {
    check_whole("value", value);
    return fill_with(x.data<int32_t>(), x.numel(), static_cast<int32_t>(value));
  }
  with_float("x", x, [&]<class T>() {
    fill_with(x.data<T>(), x.numel(), from_float<T>(static_cast<float>(value)));
  });
}

void arange(Stream&, Out x, double start, double step) {
  const int64_t n = x.numel();
  if (x.dtype == DType::i32) {
    check_whole("start", start);
    check_whole("step", step);
    if (n > 0) check_whole("the last element", start + static_cast<double>(n - 1) * step);
    return ramp(x.data<int32_t>(), n, start, step, [](double v) { return static_cast<int32_t>(v); });
  }
  with_float("x", x, [&]<class T>() {
    ramp(x.data<T>(), n, start, step, [](double v) { return from_float<T>(static_cast<float>(v)); });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

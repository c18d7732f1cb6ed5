// y += x, and y += s · x with s on the device (a gradient that arrives from a scalar). x and y may differ in dtype; the
// sum is made in f32 and rounded once.

#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

void add(const Tensor& x, const Tensor& y, float scale) {
  with_float("x", x, [&]<class T>() {
    with_float("y", y, [&]<class U>() {
      const T* from = x.data<T>();
      U* to = y.data<U>();
      parallel_vectors(x.numel(), [&](int64_t i, auto lanes) {
        lanes.store(to + i, lanes.load(to + i) + lanes.load(from + i) * scale);
      });
    });
  });
}

void check(const Tensor& x, const Tensor& y) {
  check_float("x", x);
  check_float("y", y);
  check_shape("y", y, x.shape);
}

}  // namespace

void accumulate(Stream&, In x, InOut y) {
  check(x, y);
  add(x, y, 1.0f);
}

void accumulate_scaled(Stream&, In x, In s, InOut y) {
  check(x, y);
  check_dtype("s", s, DType::f32);
  LF_CHECK(s.numel() == 1, "expected s of one element, got {}", to_string(s.shape));
  add(x, y, s.data<float>()[0]);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

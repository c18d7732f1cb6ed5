// y += x, and y += s · x with s on the device (a gradient that arrives from a scalar). x and y may
// differ in dtype; the sum is made in f32 and rounded once.

#include "cpu/kernel.h"
#include "ops/checks/optimizer.h"

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

}  // namespace

void accumulate(Stream&, In x, InOut y) {
  check_accumulate(x, y);
  add(x, y, 1.0f);
}

void accumulate_scaled(Stream&, In x, In s, InOut y) {
  check_accumulate_scaled(x, s, y);
  add(x, y, s.data<float>()[0]);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

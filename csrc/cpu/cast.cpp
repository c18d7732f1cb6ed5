// Conversion between all dtypes. Conversion to bf16 rounds to nearest even. Float to i32 rounds
// towards zero, turns NaN into 0, and clamps numbers beyond the range to its nearest end (C++
// leaves both undefined). i32 to bf16 goes through f32, as everywhere else.

#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

LF_INLINE Ints truncate(Floats x) {
  const Ints inside = __builtin_convertvector(clamp(x, -0x1p31f, 0x1.fffffep30f), Ints);
  const Ints high = x >= 0x1p31f ? Ints{} + INT32_MAX : inside;
  return x == x ? high : Ints{};
}

// Reinterprets a vector of i32 as a vector of floats, so that for_each_vector can carry it.
LF_INLINE Floats bits_of(Ints x) { return reinterpret_cast<Floats>(x); }

}  // namespace

void cast(Stream&, In x, Out y) {
  check_shape("y", y, x.shape);
  const int64_t n = x.numel();
  if (x.dtype == y.dtype) {
    const char* from = static_cast<const char*>(x.raw());
    char* to = static_cast<char*>(y.raw());
    const int64_t size = static_cast<int64_t>(size_of(x.dtype));
    if (from == to) return;
    return parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin * size, from + begin * size,
                  static_cast<size_t>((end - begin) * size));
    });
  }
  if (x.dtype == DType::i32) {
    const float* from = static_cast<const float*>(x.raw());
    return with_float("y", y, [&]<class T>() {
      T* to = y.data<T>();
      parallel_vectors(n, [&](int64_t i, auto lanes) {
        lanes.store(to + i,
                    __builtin_convertvector(reinterpret_cast<Ints>(lanes.load(from + i)), Floats));
      });
    });
  }
  with_float("x", x, [&]<class T>() {
    const T* from = x.data<T>();
    if (y.dtype == DType::i32) {
      float* to = static_cast<float*>(y.raw());
      parallel_vectors(n, [&](int64_t i, auto lanes) {
        lanes.store(to + i, bits_of(truncate(lanes.load(from + i))));
      });
    } else {
      with_float("y", y, [&]<class U>() {
        U* to = y.data<U>();
        parallel_vectors(n,
                         [&](int64_t i, auto lanes) { lanes.store(to + i, lanes.load(from + i)); });
      });
    }
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// Σ x² for the gradient norm. Sums are in double over fixed blocks, then over the blocks in order,
// which gives the same bits for any number of threads and loses nothing on billions of elements.
// NaN and infinity propagate.

#include "cpu/kernel.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

// Half a vector's lanes fill a register as doubles.
constexpr int kHalf = kLanes / 2;
typedef float HalfFloats __attribute__((vector_size(kHalf * 4)));
typedef double Doubles __attribute__((vector_size(kHalf * 8)));

// GCC 12 splits the plain conversion, and warns about the unmasked form for 512 bits.
LF_INLINE Doubles to_doubles(HalfFloats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Doubles>(_mm512_maskz_cvtps_pd(0xff, reinterpret_cast<__m256>(x)));
#elif defined(__AVX__)
  return reinterpret_cast<Doubles>(_mm256_cvtps_pd(reinterpret_cast<__m128>(x)));
#else
  return __builtin_convertvector(x, Doubles);
#endif
}

template <class T>
double block_sum(const T* x, int64_t begin, int64_t end) {
  Doubles sums[2] = {};
  for_each_vector(begin, end, [&](int64_t i, auto lanes) {
    const Floats values = lanes.load(x + i);
    HalfFloats halves[2];
    std::memcpy(halves, &values, sizeof values);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Doubles value = to_doubles(halves[half]);
      sums[half] += value * value;
    }
  });
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane / kHalf][lane % kHalf];
  return total;
}

}  // namespace

void sum_of_squares(Stream& stream, In x, Out sum) {
  check_sum_of_squares(x, sum);
  const int64_t n = x.numel();
  const int64_t blocks = (n + kChunk - 1) / kChunk;
  Scratch scratch(stream, static_cast<size_t>(blocks) * sizeof(double));
  double* partial = scratch.as<double>();
  with_float("x", x, [&]<class T>() {
    const T* data = x.data<T>();
    parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) {
      partial[begin / kChunk] = block_sum(data, begin, end);
    });
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partial[b];
  sum.data<float>()[0] = static_cast<float>(total);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

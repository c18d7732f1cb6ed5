// Σ x² for the gradient norm. Sums in double over fixed blocks, then over the blocks in order: the same bits for any
// number of threads, and no loss on billions of elements. NaN and infinity come through.

#include "cpu/kernel.h"
#include "ops/checks/optimizer.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

typedef double Doubles __attribute__((vector_size(kLanes * 8)));

template <class T> double block_sum(const T* x, int64_t begin, int64_t end) {
  Doubles sum = {};
  for_each_vector(begin, end, [&](int64_t i, auto lanes) {
    const Doubles value = __builtin_convertvector(lanes.load(x + i), Doubles);
    sum += value * value;
  });
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
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

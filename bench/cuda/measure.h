// Timing and comparison for the stand-alone kernel benches: events, warm-up, medians; errors as
// ||out - ref|| / ||ref||.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "cuda/runtime/cuda_error.h"
#include "runtime/dtype.h"

namespace bench {

using llamaforge::bfloat16;
using llamaforge::to_bfloat16;
using llamaforge::to_float;

// Device memory, filled with NaN patterns so that gaps in a kernel's output show.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    LF_CUDA_CHECK(cudaMalloc(&data_, std::max<size_t>(1, count) * sizeof(T)));
    poison();
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) { write(host); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  size_t count() const { return count_; }
  void poison() { LF_CUDA_CHECK(cudaMemset(data_, 0xff, count_ * sizeof(T))); }
  void write(const std::vector<T>& host) {
    LF_CUDA_CHECK(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> read() const {
    std::vector<T> host(count_);
    LF_CUDA_CHECK(cudaDeviceSynchronize());
    LF_CUDA_CHECK(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

inline std::mt19937& generator() {
  static std::mt19937 engine(std::random_device{}());
  return engine;
}
template <class T>
std::vector<T> normal(size_t count, float scale = 1) {
  std::normal_distribution<float> draw(0, scale);
  std::vector<T> values(count);
  // Large tensors repeat a random block of odd length, because drawing a billion numbers would take
  // longer than the bench.
  const size_t period = std::min<size_t>(count, 1000003);
  for (size_t i = 0; i < period; ++i) values[i] = llamaforge::from_float<T>(draw(generator()));
  for (size_t i = period; i < count; ++i) values[i] = values[i - period];
  return values;
}

template <class T>
double relative_error(const std::vector<T>& out, const std::vector<double>& reference) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double d = static_cast<double>(to_float(out[i])) - reference[i];
    difference += d * d;
    norm += reference[i] * reference[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);  // NaN stays NaN
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

inline int& failures() {
  static int count = 0;
  return count;
}
inline bool expect(bool holds, const char* what, double value = 0) {
  if (!holds) {
    ++failures();
    std::printf("FAILED %s (%g)\n", what, value);
  }
  return holds;
}

struct Time {
  double median_ms, sustained_ms;
};
// Returns the median of single launches, and the mean of a run without gaps that is long enough to
// reach the power limit.
inline Time measure(const std::function<void()>& work, cudaStream_t stream = nullptr,
                    int samples = 30, double sustained_s = 0.3) {
  cudaEvent_t begin, end;
  LF_CUDA_CHECK(cudaEventCreate(&begin));
  LF_CUDA_CHECK(cudaEventCreate(&end));
  const auto elapsed = [&](int times) {
    LF_CUDA_CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < times; ++i) work();
    LF_CUDA_CHECK(cudaEventRecord(end, stream));
    LF_CUDA_CHECK(cudaEventSynchronize(end));
    float ms;
    LF_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    return ms / times;
  };
  for (int i = 0; i < 3; ++i) elapsed(1);
  std::vector<double> times;
  for (int i = 0; i < samples; ++i) times.push_back(elapsed(1));
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const double sustained = elapsed(std::max(3, static_cast<int>(sustained_s * 1e3 / median)));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return {median, sustained};
}

}  // namespace bench

// Shared by the kernel benches: the GPU as a stream, tensors on it, comparison with a reference,
// and a line for each time.
#pragma once

#include <memory>
#include <string>

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/cuda_stream.h"
#include "measure.h"

namespace bench {

using namespace llamaforge;

inline std::shared_ptr<cuda::CudaStream> device;

inline void run(const std::function<void(Stream&)>& work) { device->submit("bench", work); }
inline void wait() { LF_CUDA_CHECK(cudaStreamSynchronize(device->compute())); }

inline Tensor empty(Shape shape, DType dtype) {
  Tensor t{nullptr, 0, std::move(shape), dtype};
  t.storage = std::make_shared<Storage>(device, std::max<size_t>(16, t.bytes()));
  t.storage->allocate();
  LF_CUDA_CHECK(cudaMemsetAsync(t.raw(), 0xff, t.bytes(), device->compute()));
  return t;
}
template <class T>
Tensor upload(Shape shape, const std::vector<T>& values) {
  Tensor t = empty(std::move(shape), dtype_of<T>());
  wait();
  LF_CUDA_CHECK(cudaMemcpy(t.raw(), values.data(), t.bytes(), cudaMemcpyHostToDevice));
  return t;
}
template <class T>
std::vector<T> download(const Tensor& t) {
  wait();
  std::vector<T> values(static_cast<size_t>(t.numel()));
  LF_CUDA_CHECK(cudaMemcpy(values.data(), t.raw(), t.bytes(), cudaMemcpyDeviceToHost));
  return values;
}
inline In in(const Tensor& t) { return In{t}; }
inline Out out(const Tensor& t) { return Out{t}; }
inline InOut in_out(const Tensor& t) { return InOut{t}; }

template <class T>
Tensor random(Shape shape, float scale = 1) {
  size_t count = 1;
  for (int64_t n : shape) count *= static_cast<size_t>(n);
  return upload<T>(std::move(shape), normal<T>(count, scale));
}
template <class T>
std::vector<double> wide(const Tensor& t) {
  std::vector<double> values;
  for (const T x : download<T>(t)) values.push_back(to_float(x));
  return values;
}
template <class T>
void compare(const std::string& name, const Tensor& out, const std::vector<double>& reference) {
  const double error = relative_error(download<T>(out), reference);
  expect(error < (sizeof(T) == 2 ? 5e-3 : 1e-5), name.c_str(), error);
}
inline void report_time(const char* name, double bytes, const std::function<void(Stream&)>& work) {
  const Time t = measure([&] { run(work); }, device->compute());
  std::printf("%-28s %8.3f ms (sustained %8.3f)  %6.0f MB  %5.2f TB/s  %3.0f%% of 3.0\n", name,
              t.median_ms, t.sustained_ms, bytes / 1e6, bytes / t.median_ms / 1e9,
              bytes / t.median_ms / 3e7);
}

}  // namespace bench

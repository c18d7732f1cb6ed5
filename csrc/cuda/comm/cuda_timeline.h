// The timeline of a rank on a GPU: when its kernels and collectives began and ended.
#pragma once

#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/runtime/cuda_stream.h"
#include "runtime/timeline.h"

namespace llamaforge::cuda {

// The timeline's moments are CUDA events, made when they are needed, because a timeline covers only
// a few steps. A moment has a number as soon as it is requested, and an event once the launcher
// reaches it.
class CudaTimeline final : public Timeline, public std::enable_shared_from_this<CudaTimeline> {
 public:
  explicit CudaTimeline(const std::shared_ptr<Stream>& stream)
      : owner_(stream), stream_(on_cuda(*stream)) {}
  ~CudaTimeline() override {
    cudaSetDevice(stream_.index());
    for (cudaEvent_t event : moments_) {
      if (event) cudaEventDestroy(event);
    }
  }

  size_t mark() override {
    const size_t moment = reserve();
    stream_.submit("timeline", [self = shared_from_this(), moment](Stream&) {
      self->record(moment, self->stream_.compute());
    });
    return moment;
  }
  // Called on the launcher's thread.
  size_t at(cudaStream_t stream) {
    const size_t moment = reserve();
    record(moment, stream);
    return moment;
  }
  std::vector<double> times() override {
    cudaSetDevice(stream_.index());
    std::lock_guard lock(mutex_);
    std::vector<double> times(moments_.size(), NAN);
    for (size_t i = 0; i < times.size(); ++i) {
      float milliseconds = 0;
      if (!moments_[0] || !moments_[i]) continue;
      LF_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, moments_[0], moments_[i]));
      times[i] = milliseconds;
    }
    return times;
  }

 private:
  size_t reserve() {
    std::lock_guard lock(mutex_);
    moments_.push_back(nullptr);
    return moments_.size() - 1;
  }
  void record(size_t moment, cudaStream_t stream) {
    cudaEvent_t event = nullptr;
    LF_CUDA_CHECK(cudaEventCreate(&event));
    {
      std::lock_guard lock(mutex_);
      moments_[moment] = event;
    }
    LF_CUDA_CHECK(cudaEventRecord(event, stream));
  }

  const std::shared_ptr<Stream> owner_;
  CudaStream& stream_;
  std::mutex mutex_;
  std::vector<cudaEvent_t> moments_;
};

}  // namespace llamaforge::cuda

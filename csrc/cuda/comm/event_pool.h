// CUDA events that order one stream behind another.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cuda/runtime/cuda_stream.h"

namespace llamaforge::cuda {

// A pool of events without timing. Events are reused, because making one costs as much as a launch.
class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  ~EventPool() {
    for (cudaEvent_t event : spare_) cudaEventDestroy(event);
  }
  // Takes an event; it returns to the pool with its last owner.
  std::shared_ptr<CUevent_st> take() {
    cudaEvent_t event = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (!spare_.empty()) {
        event = spare_.back();
        spare_.pop_back();
      }
    }
    if (!event) LF_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return {event, [pool = shared_from_this()](cudaEvent_t event) {
              std::lock_guard lock(pool->mutex_);
              pool->spare_.push_back(event);
            }};
  }

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> spare_;
};

using Event = std::shared_ptr<CUevent_st>;

}  // namespace llamaforge::cuda

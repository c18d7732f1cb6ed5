#include "cuda/runtime/completion_queue.h"

#include <future>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {

class CompletionQueue::SpareEvents {
 public:
  SpareEvents() = default;
  ~SpareEvents() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  SpareEvents(const SpareEvents&) = delete;
  SpareEvents& operator=(const SpareEvents&) = delete;

  cudaEvent_t take() {
    cudaEvent_t event = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (!events_.empty()) {
        event = events_.back();
        events_.pop_back();
      }
    }
    constexpr unsigned kFlags = cudaEventDisableTiming | cudaEventBlockingSync;
    if (!event) LF_CUDA_CHECK(cudaEventCreateWithFlags(&event, kFlags));
    return event;
  }
  void give(cudaEvent_t event) {
    std::lock_guard lock(mutex_);
    events_.push_back(event);
  }

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> events_;
};

CompletionQueue::CompletionQueue(int device)
    : spare_(std::make_shared<SpareEvents>()), worker_(calls_of(device, spare_)) {}

Worker<CompletionQueue::Item>::Calls CompletionQueue::calls_of(int device,
                                                               std::shared_ptr<SpareEvents> spare) {
  Worker<Item>::Calls calls;
  calls.begin = [device] { cudaSetDevice(device); };
  calls.work = [spare = std::move(spare)](Item& item) {
    item.action(cudaEventSynchronize(item.event));
    // Everything that the action holds, maybe the queue itself, is released before the next wait.
    item.action = nullptr;
    spare->give(item.event);
  };
  calls.drop = [](Item& item) {
    item.action(cudaErrorNotReady);
    cudaEventDestroy(item.event);
  };
  return calls;
}

void CompletionQueue::when_reached(cudaStream_t stream, std::function<void(cudaError_t)> action) {
  cudaEvent_t event = spare_->take();
  if (const cudaError_t error = cudaEventRecord(event, stream); error != cudaSuccess) {
    cudaEventDestroy(event);
    throw error_of(error, "cudaEventRecord");
  }
  worker_.push({event, std::move(action)});
}

void CompletionQueue::drain() {
  auto drained = std::make_shared<std::promise<void>>();
  const std::future<void> result = drained->get_future();
  // A queue that closes drops the promise, which also ends the wait.
  worker_.when_at_most(0, [drained = std::move(drained)] { drained->set_value(); });
  result.wait();
}

}  // namespace llamaforge::cuda

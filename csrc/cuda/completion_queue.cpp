#include "cuda/completion_queue.h"

#include "cuda/cuda_error.h"

namespace llamaforge::cuda {

CompletionQueue::CompletionQueue(int device) : device_(device), thread_([this] { run(); }) {}

CompletionQueue::~CompletionQueue() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  filled_.notify_one();
  thread_.join();
  for (Item& item : items_) {
    item.action(cudaErrorNotReady);
    cudaEventDestroy(item.event);
  }
  for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
}

void CompletionQueue::when_reached(cudaStream_t stream, std::function<void(cudaError_t)> action) {
  cudaEvent_t event = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (!spare_events_.empty()) {
      event = spare_events_.back();
      spare_events_.pop_back();
    }
  }
  if (!event) LF_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
  if (const cudaError_t error = cudaEventRecord(event, stream); error != cudaSuccess) {
    cudaEventDestroy(event);
    throw error_of(error, "cudaEventRecord");
  }
  {
    std::lock_guard lock(mutex_);
    items_.push_back({event, std::move(action)});
  }
  filled_.notify_one();
}

void CompletionQueue::drain() {
  std::unique_lock lock(mutex_);
  emptied_.wait(lock, [this] { return (items_.empty() && !busy_) || closing_; });
}

void CompletionQueue::run() {
  cudaSetDevice(device_);
  for (;;) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      busy_ = false;
      if (items_.empty()) emptied_.notify_all();
      filled_.wait(lock, [this] { return closing_ || !items_.empty(); });
      if (closing_) return;
      item = std::move(items_.front());
      items_.pop_front();
      busy_ = true;
    }
    item.action(cudaEventSynchronize(item.event));
    item.action = nullptr;  // what it holds goes before the next wait
    std::lock_guard lock(mutex_);
    spare_events_.push_back(item.event);
  }
}

}  // namespace llamaforge::cuda

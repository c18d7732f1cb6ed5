#include "cuda/runtime/completion_queue.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {

struct CompletionQueue::State {
  struct Item {
    cudaEvent_t event;
    std::function<void(cudaError_t)> action;
  };
  ~State() {
    for (cudaEvent_t event : spare_events) cudaEventDestroy(event);
  }

  std::mutex mutex;
  std::condition_variable filled, emptied;
  std::deque<Item> items;
  std::vector<cudaEvent_t> spare_events;
  bool busy = false, closing = false;
};

CompletionQueue::CompletionQueue(int device)
    : state_(std::make_shared<State>()), thread_([device, state = state_] { run(device, *state); }) {}

CompletionQueue::~CompletionQueue() {
  {
    std::lock_guard lock(state_->mutex);
    state_->closing = true;
  }
  state_->filled.notify_one();
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
  // The thread no longer takes items, so the rest is answered here.
  for (State::Item& item : state_->items) {
    item.action(cudaErrorNotReady);
    cudaEventDestroy(item.event);
  }
  state_->items.clear();
}

void CompletionQueue::when_reached(cudaStream_t stream, std::function<void(cudaError_t)> action) {
  cudaEvent_t event = nullptr;
  {
    std::lock_guard lock(state_->mutex);
    if (!state_->spare_events.empty()) {
      event = state_->spare_events.back();
      state_->spare_events.pop_back();
    }
  }
  if (!event) LF_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
  if (const cudaError_t error = cudaEventRecord(event, stream); error != cudaSuccess) {
    cudaEventDestroy(event);
    throw error_of(error, "cudaEventRecord");
  }
  {
    std::lock_guard lock(state_->mutex);
    state_->items.push_back({event, std::move(action)});
  }
  state_->filled.notify_one();
}

void CompletionQueue::drain() {
  std::unique_lock lock(state_->mutex);
  state_->emptied.wait(lock, [this] { return (state_->items.empty() && !state_->busy) || state_->closing; });
}

void CompletionQueue::run(int device, State& state) {
  cudaSetDevice(device);
  for (;;) {
    State::Item item;
    {
      std::unique_lock lock(state.mutex);
      state.busy = false;
      if (state.items.empty()) state.emptied.notify_all();
      state.filled.wait(lock, [&state] { return state.closing || !state.items.empty(); });
      if (state.closing) return;
      item = std::move(state.items.front());
      state.items.pop_front();
      state.busy = true;
    }
    item.action(cudaEventSynchronize(item.event));
    item.action = nullptr;  // releases its captures before the next wait, possibly the queue itself
    std::lock_guard lock(state.mutex);
    state.spare_events.push_back(item.event);
  }
}

}  // namespace llamaforge::cuda

// A host thread that waits for events of the device and then runs what was left for it, in order. It sleeps while it
// waits; the JS thread never does.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace llamaforge::cuda {

class CompletionQueue {
 public:
  explicit CompletionQueue(int device);
  ~CompletionQueue();  // what has not been reached yet runs with cudaErrorNotReady
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  // Runs `action` on the queue's thread once everything enqueued on `stream` so far has run, or with the device's error.
  void when_reached(cudaStream_t stream, std::function<void(cudaError_t)> action);
  // Blocks the caller until every action so far has run.
  void drain();

 private:
  struct Item {
    cudaEvent_t event;
    std::function<void(cudaError_t)> action;
  };
  void run();

  const int device_;
  std::mutex mutex_;
  std::condition_variable filled_, emptied_;
  std::deque<Item> items_;
  std::vector<cudaEvent_t> spare_events_;
  bool busy_ = false, closing_ = false;
  std::thread thread_;  // last: starts when everything else is there
};

}  // namespace llamaforge::cuda

// A host thread that waits for events of the device and then runs what was left for it, in order.
// It sleeps while it waits; the JS thread never does.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>

#include "runtime/worker.h"

namespace llamaforge::cuda {

class CompletionQueue {
 public:
  // At the queue's end, actions whose events have not been reached run with cudaErrorNotReady. An
  // action may release the queue's last owner; the thread then ends after that action.
  explicit CompletionQueue(int device);

  // Runs `action` on the queue's thread once everything enqueued on `stream` so far has run, or
  // with the device's error.
  void when_reached(cudaStream_t stream, std::function<void(cudaError_t)> action);
  // Blocks the caller until every action so far has run.
  void drain();

 private:
  struct Item {
    cudaEvent_t event = nullptr;
    std::function<void(cudaError_t)> action;
  };
  class SpareEvents;

  static Worker<Item>::Calls calls_of(int device, std::shared_ptr<SpareEvents> spare);

  // Shared with the thread, which may outlive this object.
  const std::shared_ptr<SpareEvents> spare_;
  // Last, so that it starts when all other members exist.
  Worker<Item> worker_;
};

}  // namespace llamaforge::cuda

// A host thread that waits for events of the device and then runs what was left for it, in order. It sleeps while it
// waits; the JS thread never does.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <thread>

namespace llamaforge::cuda {

class CompletionQueue {
 public:
  explicit CompletionQueue(int device);
  // What has not been reached yet runs with cudaErrorNotReady. On the queue's own thread, where an action lets go of the
  // queue's last owner, the thread ends after that action.
  ~CompletionQueue();
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  // Runs `action` on the queue's thread once everything enqueued on `stream` so far has run, or with the device's error.
  void when_reached(cudaStream_t stream, std::function<void(cudaError_t)> action);
  // Blocks the caller until every action so far has run.
  void drain();

 private:
  struct State;
  static void run(int device, State& state);

  const std::shared_ptr<State> state_;  // its thread's as well, which may outlive this object
  std::thread thread_;                  // last: starts when everything else is there
};

}  // namespace llamaforge::cuda

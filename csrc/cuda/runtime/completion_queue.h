// A host thread that waits for events of the device and then runs the actions queued for them, in
// order. The thread sleeps while it waits; the JS thread never waits.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <thread>

namespace llamaforge::cuda {

class CompletionQueue {
 public:
  explicit CompletionQueue(int device);
  // Runs the actions that have not been reached yet with cudaErrorNotReady. If an action on the
  // queue's own thread releases the queue's last owner, the thread ends after that action.
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

  const std::shared_ptr<State> state_;  // shared with its thread, which may outlive this object
  std::thread thread_;                  // last member: starts after everything else is initialised
};

}  // namespace llamaforge::cuda

// Collective operations of a group of ranks. The device's library provides them: Gloo on the CPU,
// NCCL on a GPU.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/tensor.h"
#include "runtime/timeline.h"

namespace llamaforge {

enum class CollectiveKind : uint8_t { all_reduce, reduce_scatter, all_gather, broadcast, barrier };
constexpr int kCollectiveKinds = 5;

// The names under which JavaScript calls the collectives.
constexpr const char* name_of(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::all_reduce: return "allReduce";
    case CollectiveKind::reduce_scatter: return "reduceScatter";
    case CollectiveKind::all_gather: return "allGather";
    case CollectiveKind::broadcast: return "broadcast";
    case CollectiveKind::barrier: return "barrier";
  }
  return "?";
}

struct CollectiveCall {
  CollectiveKind kind = CollectiveKind::barrier;
  Tensor input, output;  // the same tensor for all_reduce and broadcast; empty for barrier
  bool average = false;  // all_reduce, reduce_scatter: divide the sum by the number of ranks
  int root = 0;          // root of a broadcast

  // Number of elements of the larger side; all ranks must agree on it.
  int64_t count() const {
    if (kind == CollectiveKind::barrier) return 0;
    return kind == CollectiveKind::reduce_scatter ? input.numel() : output.numel();
  }
  int64_t bytes() const { return count() * static_cast<int64_t>(size_of(output.dtype)); }
};

// An enqueued collective.
class CollectiveWork {
 public:
  virtual ~CollectiveWork() = default;
  // Work submitted to the compute stream from here on runs after the collective. Does not block.
  virtual void wait() = 0;
  // Calls `done` on some thread once the collective has run, with its failure or null.
  virtual void when_done(std::function<void(std::exception_ptr)> done) = 0;
};

// Progress of a group. Its collectives run one after the other, so two counts describe it.
struct CollectiveProgress {
  uint64_t started = 0, completed = 0;
  std::string failure;  // error reported by the library; empty if there is none
};

// Options with which a device's library connects the ranks of a group.
struct CollectivesOptions {
  std::string name;             // of the group
  std::vector<uint32_t> ranks;  // global
  int rank = 0, size = 1;       // within the group
  std::string id;               // made by the group's first rank; empty for a group of one
  std::chrono::milliseconds start_timeout{0};
};

// One group of ranks on one device. A collective runs on the device's communication stream. It
// starts after all work that the compute stream was given before it, and runs concurrently with
// work that is given later. It keeps its tensors until they are no longer used.
class Collectives {
 public:
  virtual ~Collectives() = default;
  // Called on the thread that submits to the compute stream.
  virtual std::shared_ptr<CollectiveWork> enqueue(CollectiveCall call) = 0;
  // Callable from any thread; does not block.
  virtual CollectiveProgress progress() = 0;
  // Ends the running collectives with ERR_PEER and `why`. Callable from any thread, any number of
  // times.
  virtual void abort(const std::string& why) = 0;
  // make_timeline() returns a timeline of this device. From follow() on, collectives and the waits
  // for them are recorded in the given timeline (null: no longer). Both are called on the thread
  // that submits.
  virtual std::shared_ptr<Timeline> make_timeline() = 0;
  virtual void follow(std::shared_ptr<Timeline> timeline) = 0;
  // Closes the connections once everything in progress has ended. May block, so it must not run on
  // the JS thread.
  virtual void close() = 0;
  // Returns for example "Gloo 0.5.0 from /path".
  virtual std::string description() const = 0;
};

}  // namespace llamaforge

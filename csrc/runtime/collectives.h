// Collective operations of a group of ranks, as the device's library offers them: Gloo on the CPU, NCCL on a GPU.
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

// As JavaScript calls them.
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
  Tensor input, output;  // the same for all_reduce and broadcast; empty for barrier
  bool average = false;  // all_reduce, reduce_scatter: divide the sum by the number of ranks
  int root = 0;          // broadcast

  // Elements of the larger side, which is what all ranks must agree on.
  int64_t count() const {
    if (kind == CollectiveKind::barrier) return 0;
    return kind == CollectiveKind::reduce_scatter ? input.numel() : output.numel();
  }
  int64_t bytes() const { return count() * static_cast<int64_t>(size_of(output.dtype)); }
};

// A collective that was enqueued.
class CollectiveWork {
 public:
  virtual ~CollectiveWork() = default;
  // Work submitted to the compute stream from here on runs after the collective. Does not block.
  virtual void wait() = 0;
  // Calls `done` on some thread once the collective has run, with its failure or null.
  virtual void when_done(std::function<void(std::exception_ptr)> done) = 0;
};

// Collectives of one group run one after the other, so two counts say where it is.
struct CollectiveProgress {
  uint64_t started = 0, completed = 0;
  std::string failure;  // what the library reports; empty: nothing
};

// What a device's library needs to connect the ranks of a group.
struct CollectivesOptions {
  std::string name;             // of the group
  std::vector<uint32_t> ranks;  // global
  int rank = 0, size = 1;       // within the group
  std::string id;               // made by the group's first rank; empty for a group of one
  std::chrono::milliseconds start_timeout{0};
};

// One group of ranks on one device. A collective runs on the device's communication stream after everything that its
// compute stream was given before, and beside what that is given after. It keeps its tensors until they are not used
// any more.
class Collectives {
 public:
  virtual ~Collectives() = default;
  // On the thread that submits to the compute stream.
  virtual std::shared_ptr<CollectiveWork> enqueue(CollectiveCall call) = 0;
  // From any thread; does not block.
  virtual CollectiveProgress progress() = 0;
  // From any thread, any number of times: ends what is on its way with ERR_PEER and `why`.
  virtual void abort(const std::string& why) = 0;
  // A timeline of this device, and from when on collectives and waits for them are in it (null: no longer). On the
  // thread that submits.
  virtual std::shared_ptr<Timeline> make_timeline() = 0;
  virtual void follow(std::shared_ptr<Timeline> timeline) = 0;
  // Lets go of the connections once everything on its way has ended. May block: not on the JS thread.
  virtual void close() = 0;
  // "Gloo 0.5.0 from /path".
  virtual std::string description() const = 0;
};

}  // namespace llamaforge

// This rank's view of a group of ranks: the collectives that were called, the progress of each, and
// the bytes that they moved.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/frame.h"
#include "comm/status.h"
#include "runtime/collectives.h"

namespace llamaforge::comm {

class Group {
 public:
  struct Stats {
    uint64_t calls = 0, bytes = 0, sent_bytes = 0;
  };
  // A failure detected here, to be reported to the other ranks.
  struct Finding {
    uint64_t sequence = 0;
    std::string text;
  };
  // Receives the hash of the calls that all ranks must have made alike.
  using Check =
      std::function<void(uint64_t sequence, uint64_t hash, const std::string& description)>;

  Group(std::string name, std::vector<uint32_t> ranks, uint32_t rank, Milliseconds timeout,
        std::shared_ptr<Collectives> collectives, Check check);

  const std::string& name() const { return name_; }
  size_t size() const { return ranks_.size(); }
  const Collectives& collectives() const { return *collectives_; }
  Stats stats(CollectiveKind kind) const;

  // Checks the tensors against each other and enqueues the call. Throws ERR_SHAPE, or ERR_PEER
  // after an abort.
  std::shared_ptr<CollectiveWork> enqueue(CollectiveCall call);
  // Returns the last collective, or null if there was none.
  std::shared_ptr<CollectiveWork> last_work() const;
  void abort(const std::string& why);
  void close() { collectives_->close(); }
  std::shared_ptr<Timeline> make_timeline() { return collectives_->make_timeline(); }
  void follow(std::shared_ptr<Timeline> timeline) { collectives_->follow(std::move(timeline)); }

  // For the watchdog: updates the progress from the device, and finds a collective that failed or
  // takes too long.
  std::optional<Finding> poll();
  GroupStatus status();
  // Describes the last collectives, one per line.
  std::string history();

 private:
  struct Record {
    uint64_t sequence;
    CollectiveKind kind;
    int64_t count;
    DType dtype;
    Clock::time_point issued;
    std::optional<Clock::time_point> started, ended;
  };
  std::string description(const Record& record) const;
  void follow();  // called with the lock held

  const std::string name_;
  const std::vector<uint32_t> ranks_;
  const uint32_t rank_;  // global
  const Milliseconds timeout_;
  const std::shared_ptr<Collectives> collectives_;
  const Check check_;

  mutable std::mutex mutex_;
  std::array<Stats, kCollectiveKinds> stats_;
  std::deque<Record> records_;  // collectives that have not ended, and the last ones that have
  uint64_t issued_ = 0, hash_ = 1469598103934665603u;
  CollectiveProgress progress_;
  std::shared_ptr<CollectiveWork> last_;
  std::string aborted_;
};

}  // namespace llamaforge::comm

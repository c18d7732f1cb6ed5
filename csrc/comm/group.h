// A group of ranks as its rank here sees it: the collectives that were called, where each of them is, and what they
// moved.
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
  // A failure found here, to be told to the others.
  struct Finding {
    uint64_t sequence = 0;
    std::string text;
  };
  // Told the hash of what all ranks must have called alike.
  using Check = std::function<void(uint64_t sequence, uint64_t hash, const std::string& description)>;

  Group(std::string name, std::vector<uint32_t> ranks, uint32_t rank, Milliseconds timeout,
        std::shared_ptr<Collectives> collectives, Check check);

  const std::string& name() const { return name_; }
  size_t size() const { return ranks_.size(); }
  const Collectives& collectives() const { return *collectives_; }
  Stats stats(CollectiveKind kind) const;

  // Checks the tensors against each other and enqueues. Throws ERR_SHAPE, ERR_PEER after an abort.
  std::shared_ptr<CollectiveWork> enqueue(CollectiveCall call);
  // The last one, if there was any.
  std::shared_ptr<CollectiveWork> last_work() const;
  void abort(const std::string& why);
  void close() { collectives_->close(); }
  std::shared_ptr<Timeline> make_timeline() { return collectives_->make_timeline(); }
  void follow(std::shared_ptr<Timeline> timeline) { collectives_->follow(std::move(timeline)); }

  // For the watchdog: follows the device, and finds what failed or takes too long.
  std::optional<Finding> poll();
  GroupStatus status();
  // The last collectives, a line each.
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
  void follow();  // with the lock

  const std::string name_;
  const std::vector<uint32_t> ranks_;
  const uint32_t rank_;  // global
  const Milliseconds timeout_;
  const std::shared_ptr<Collectives> collectives_;
  const Check check_;

  mutable std::mutex mutex_;
  std::array<Stats, kCollectiveKinds> stats_;
  std::deque<Record> records_;  // those that have not ended, and the last that have
  uint64_t issued_ = 0, hash_ = 1469598103934665603u;
  CollectiveProgress progress_;
  std::shared_ptr<CollectiveWork> last_;
  std::string aborted_;
};

}  // namespace llamaforge::comm

// A thread that works off a queue, in order: the commands of a device.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace llamaforge {

template <class Item>
class Worker {
 public:
  // `work` runs for each item, on the thread of this object, and `begin` once before; neither may throw. Before the
  // thread sleeps it looks for new items for `spin`: to wake it costs the thread that pushes some microseconds.
  Worker(std::function<void(Item&)> work, std::function<void()> begin, std::chrono::microseconds spin = {})
      : work_(std::move(work)), begin_(std::move(begin)), spin_(spin), thread_([this] { run(); }) {}
  ~Worker() { close(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // False once the queue is closed; the item is dropped then.
  bool push(Item item) {
    bool asleep;
    {
      std::lock_guard lock(mutex_);
      if (closing_) return false;
      items_.push_back(std::move(item));
      ++waiting_;
      asleep = asleep_;
    }
    if (asleep) filled_.notify_one();
    return true;
  }

  // Items that were pushed and have not been worked off, the running one included.
  size_t waiting() const { return waiting_; }

  // Calls `done` once at most `most` items wait: at once, or on the worker's thread. Never after close().
  void when_at_most(size_t most, std::function<void()> done) {
    {
      std::lock_guard lock(mutex_);
      if (closing_) return;
      // Counted first: the thread, which looks at the count after each item, then misses no watcher.
      ++watching_;
      if (waiting_ > most) {
        watchers_.push_back({most, std::move(done)});
        return;
      }
      --watching_;
    }
    done();
  }

  // Lets the running item end and drops the others. On another thread than the worker's.
  void close() {
    stop();
    filled_.notify_one();
    if (thread_.joinable()) thread_.join();
    // Dropped outside the lock: items own memory whose release takes other locks.
    std::deque<Item> dropped;
    std::deque<Watcher> watchers;
    std::lock_guard lock(mutex_);
    dropped.swap(items_);
    watchers.swap(watchers_);
  }

  // Takes no more items, and waits for the running one to end, at most for `patience`. For the end of a process, whose
  // threads go on while static objects are destroyed. Returns whether the thread rests.
  bool rest(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    closing_ = true;
    filled_.notify_one();
    return rested_.wait_for(lock, patience, [this] { return resting_; });
  }

 private:
  struct Watcher {
    size_t most;
    std::function<void()> done;
  };

  void stop() {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }

  void run() {
    begin_();
    while (take_items()) {
      for (; !taken_.empty() && !closing_; taken_.pop_front()) {
        work_(taken_.front());
        taken_.front() = Item();  // whatever the item owns goes before the item counts as done
        --waiting_;
        if (watching_ > 0) tell_watchers();
      }
      if (closing_) break;
    }
    taken_.clear();
    std::lock_guard lock(mutex_);
    resting_ = true;
    rested_.notify_all();
  }

  // Moves everything that was pushed to `taken_`. False when the queue is closed.
  bool take_items() {
    const auto until = std::chrono::steady_clock::now() + spin_;
    while (spin_.count() > 0 && waiting_ == 0 && !closing_ && std::chrono::steady_clock::now() < until) {
      std::this_thread::yield();
    }
    std::unique_lock lock(mutex_);
    asleep_ = true;
    filled_.wait(lock, [this] { return closing_ || !items_.empty(); });
    asleep_ = false;
    taken_.swap(items_);
    return !closing_;
  }

  void tell_watchers() {
    std::deque<Watcher> reached;
    {
      std::lock_guard lock(mutex_);
      const size_t waiting = waiting_;
      for (auto watcher = watchers_.begin(); watcher != watchers_.end();) {
        if (waiting > watcher->most) {
          ++watcher;
          continue;
        }
        reached.push_back(std::move(*watcher));
        watcher = watchers_.erase(watcher);
        --watching_;
      }
    }
    for (const Watcher& watcher : reached) watcher.done();
  }

  const std::function<void(Item&)> work_;
  const std::function<void()> begin_;
  const std::chrono::microseconds spin_;
  mutable std::mutex mutex_;
  std::condition_variable filled_, rested_;
  std::deque<Item> items_;
  std::deque<Watcher> watchers_;
  std::atomic<size_t> waiting_{0}, watching_{0};
  std::atomic<bool> closing_{false};
  bool asleep_ = false, resting_ = false;
  std::deque<Item> taken_;  // of the thread alone
  std::thread thread_;      // last: starts when everything else is there
};

}  // namespace llamaforge

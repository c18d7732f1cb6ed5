// A thread that runs a queue in order: a device's commands, waits for its events, collectives.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace llamaforge {

template <class Item>
class Worker {
 public:
  // Functions that the thread calls; none of them may throw.
  struct Calls {
    std::function<void(Item&)> work;   // for each item
    std::function<void()> begin = {};  // once, before the first item
    // Called for each item that close() leaves without work, maybe on another thread.
    std::function<void(Item&)> drop = {};
  };

  // Before the thread sleeps, it looks for new items for `spin`, because waking it costs the
  // pushing thread some microseconds.
  explicit Worker(Calls calls, std::chrono::microseconds spin = {})
      : state_(std::make_shared<State>(std::move(calls), spin)),
        thread_([state = state_] { state->run(); }) {}
  ~Worker() { close(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Returns false once the queue is closed; the item is then gone.
  bool push(Item item) {
    bool asleep;
    {
      std::lock_guard lock(state_->mutex);
      if (state_->closing) return false;
      state_->items.push_back(std::move(item));
      ++state_->waiting;
      asleep = state_->asleep;
    }
    if (asleep) state_->filled.notify_one();
    return true;
  }

  // Returns the number of items that were pushed and have not finished, the running one included.
  size_t waiting() const { return state_->waiting; }

  // Calls `done` once at most `most` items wait: at once, or on the worker's thread. Never calls it
  // after close().
  void when_at_most(size_t most, std::function<void()> done) {
    {
      std::lock_guard lock(state_->mutex);
      if (state_->closing) return;
      // The watcher is counted first, so that the thread, which looks at the count after each item,
      // misses no watcher.
      ++state_->watching;
      if (state_->waiting > most) {
        state_->watchers.push_back({most, std::move(done)});
        return;
      }
      --state_->watching;
    }
    done();
  }

  // Lets the running item end and drops the others. On the worker's own thread, where an item
  // releases the worker's last owner, close() returns at once, and the thread ends after that item.
  void close() {
    state_->stop();
    state_->filled.notify_one();
    if (thread_.get_id() == std::this_thread::get_id()) {
      thread_.detach();
    } else if (thread_.joinable()) {
      thread_.join();
    }
    // Items are dropped outside the lock, because they own memory whose release takes other locks.
    std::deque<Item> dropped;
    std::deque<Watcher> watchers;
    {
      std::lock_guard lock(state_->mutex);
      dropped.swap(state_->items);
      watchers.swap(state_->watchers);
    }
    state_->drop(dropped);
  }

  // Takes no more items, and waits at most `patience` for the running item to end. This serves the
  // end of a process, whose threads go on while static objects are destroyed. Returns whether the
  // thread rests.
  bool rest(std::chrono::milliseconds patience) {
    std::unique_lock lock(state_->mutex);
    state_->closing = true;
    state_->filled.notify_one();
    return state_->rested.wait_for(lock, patience, [this] { return state_->resting; });
  }

 private:
  struct Watcher {
    size_t most;
    std::function<void()> done;
  };

  // The thread shares this state, and may outlive the worker.
  struct State {
    State(Calls calls, std::chrono::microseconds spin) : calls(std::move(calls)), spin(spin) {}

    void stop() {
      std::lock_guard lock(mutex);
      closing = true;
    }

    void run() {
      if (calls.begin) calls.begin();
      while (take_items()) {
        for (; !taken.empty() && !closing; taken.pop_front()) {
          calls.work(taken.front());
          // The item's resources are released before the item counts as done.
          taken.front() = Item();
          --waiting;
          if (watching > 0) tell_watchers();
        }
        if (closing) break;
      }
      drop(taken);
      std::lock_guard lock(mutex);
      resting = true;
      rested.notify_all();
    }

    // Moves everything that was pushed to `taken`. Returns false when the queue is closed.
    bool take_items() {
      const auto until = std::chrono::steady_clock::now() + spin;
      while (spin.count() > 0 && waiting == 0 && !closing &&
             std::chrono::steady_clock::now() < until) {
        std::this_thread::yield();
      }
      std::unique_lock lock(mutex);
      asleep = true;
      filled.wait(lock, [this] { return closing || !items.empty(); });
      asleep = false;
      taken.swap(items);
      return !closing;
    }

    void tell_watchers() {
      std::deque<Watcher> reached;
      {
        std::lock_guard lock(mutex);
        const size_t left = waiting;
        for (auto watcher = watchers.begin(); watcher != watchers.end();) {
          if (left > watcher->most) {
            ++watcher;
            continue;
          }
          reached.push_back(std::move(*watcher));
          watcher = watchers.erase(watcher);
          --watching;
        }
      }
      for (const Watcher& watcher : reached) watcher.done();
    }

    void drop(std::deque<Item>& dropped) {
      if (calls.drop) {
        for (Item& item : dropped) calls.drop(item);
      }
      dropped.clear();
    }

    const Calls calls;
    const std::chrono::microseconds spin;
    std::mutex mutex;
    std::condition_variable filled, rested;
    std::deque<Item> items;
    std::deque<Watcher> watchers;
    std::atomic<size_t> waiting{0}, watching{0};
    std::atomic<bool> closing{false};
    bool asleep = false, resting = false;
    std::deque<Item> taken;  // used by the thread alone
  };

  const std::shared_ptr<State> state_;
  std::thread thread_;  // last, so that it starts when all other members exist
};

}  // namespace llamaforge

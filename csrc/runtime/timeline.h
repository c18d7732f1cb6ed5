// When the streams of a device did what, on one clock: for a picture of a training step. Collectives add themselves to
// it while they are told to follow it; without one, nothing is recorded.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace llamaforge {

class Timeline {
 public:
  // A stretch of time between two moments.
  struct Span {
    std::string group;  // of ranks
    const char* name;   // of the collective, a literal
    int64_t bytes;      // of its larger side
    bool waiting;       // the compute stream waits for the collective; otherwise it runs
    size_t start, end;
  };

  virtual ~Timeline() = default;
  // The moment at which the compute stream has run what it was given so far; returns its number.
  virtual size_t mark() = 0;
  // Milliseconds from the first moment to each, once all of them are past; NaN where a failure came first.
  virtual std::vector<double> times() = 0;

  void add(Span span) {
    std::lock_guard lock(spans_mutex_);
    spans_.push_back(std::move(span));
  }
  std::vector<Span> spans() const {
    std::lock_guard lock(spans_mutex_);
    return spans_;
  }

 private:
  mutable std::mutex spans_mutex_;
  std::vector<Span> spans_;
};

}  // namespace llamaforge

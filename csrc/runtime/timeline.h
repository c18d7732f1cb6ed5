// Records when the streams of a device did their work, on one clock, for a picture of a training
// step. Collectives add their spans while they follow a timeline; without a timeline nothing is
// recorded.
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
    std::string group;  // group of ranks
    const char* name;   // name of the collective, a literal
    int64_t bytes;      // bytes of the collective's larger side
    bool waiting;  // true: the compute stream waits for the collective; false: the collective runs
    size_t start, end;
  };

  virtual ~Timeline() = default;
  // Records the moment at which the compute stream has run all work that it was given so far;
  // returns the moment's number.
  virtual size_t mark() = 0;
  // Milliseconds from the first moment to each moment, available once all of them are past; NaN if
  // a failure came first.
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

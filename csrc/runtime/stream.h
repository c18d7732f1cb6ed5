// A device is a stream: a submission returns at once, and the work runs in order on a thread of the
// device, which computes (CPU) or launches kernels (GPU). The device never blocks the submitting
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "runtime/recording.h"

namespace llamaforge {

struct MemoryStats {
  uint64_t used = 0;    // bytes in storages and scratch now
  uint64_t peak = 0;    // highest `used` since the start or the last reset
  uint64_t cached = 0;  // bytes kept for reuse
  uint64_t limit = 0;   // highest allowed `used`; 0: only the machine limits it
};

class Stream {
 public:
  virtual ~Stream() = default;

  // Runs `work` after everything submitted before. If it throws, everything up to the next wait is
  // skipped, and that wait reports the failure with the op's name. `op` must outlive the stream (a
  // literal).
  virtual void submit(const char* op, std::function<void(Stream&)> work) = 0;

  // Calls `done` on a thread of the stream once everything submitted before has run, with the first
  // failure since the last wait, or null. After that the stream works again.
  virtual void wait(std::function<void(std::exception_ptr)> done) = 0;

  // Number of works and waits that were submitted and have not been run (CPU) or launched (GPU).
  virtual size_t backlog() const = 0;
  // Calls `done`, on this thread or one of the stream's, once the backlog is at most `most`; never
  // after close().
  virtual void when_backlog_at_most(size_t most, std::function<void()> done) = 0;

  // Memory, in stream order. `allocate` throws ERR_OUT_OF_MEMORY with the needed and the free
  // bytes.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory, size_t bytes) noexcept = 0;

  // Copies between host and device memory, in stream order, called from within submitted work.
  // `keep` is held until nothing writes to `host` any more; it is null if the caller keeps `host`
  // alive. copy_from_host no longer needs `host` when it returns.
  virtual void copy_to_host(void* host, const void* device, size_t bytes,
                            std::shared_ptr<void> keep) = 0;
  virtual void copy_from_host(void* device, const void* host, size_t bytes) = 0;

  virtual MemoryStats memory() const = 0;
  virtual void reset_peak() = 0;
  virtual void set_memory_limit(uint64_t bytes) = 0;
  // Threads of the CPU's team that runs the kernels.
  virtual int threads() const = 0;
  // Ends the stream's own thread. Remaining work is dropped, and remaining waits are not answered.
  virtual void close() = 0;

  // Submits all works of a recording as one. A failure names the op that failed, or `replay` if the
  // device runs the ops as one.
  virtual void replay(std::shared_ptr<Recording> recording) = 0;
  // Tells the stream, from within submitted work, that an op is about to write this memory.
  virtual void will_write(const void* /*memory*/, size_t /*bytes*/) {}
};

// Device memory for the duration of one op.
class Scratch {
 public:
  Scratch(Stream& stream, size_t bytes)
      : stream_(stream), bytes_(bytes), data_(stream.allocate(bytes)) {}
  ~Scratch() { stream_.release(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Stream& stream_;
  size_t bytes_;
  void* data_;
};

}  // namespace llamaforge

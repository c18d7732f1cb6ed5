// The CPU as a stream: one native thread runs what was submitted, with an OpenMP team of its own.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "runtime/stream.h"
#include "runtime/worker.h"

namespace llamaforge {

class CpuStream final : public Stream {
 public:
  explicit CpuStream(int threads);
  ~CpuStream() override;

  void submit(const char* op, std::function<void(Stream&)> work) override;
  void wait(std::function<void(std::exception_ptr)> done) override;
  size_t backlog() const override { return worker_.waiting(); }
  void when_backlog_at_most(size_t most, std::function<void()> done) override {
    worker_.when_at_most(most, std::move(done));
  }

  // 64-byte aligned blocks, kept by size class for the next tensor of that class.
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;

  void copy_to_host(void* host, const void* device, size_t bytes, std::shared_ptr<void> keep) override;
  void copy_from_host(void* device, const void* host, size_t bytes) override;

  MemoryStats memory() const override;
  void reset_peak() override;
  void set_memory_limit(uint64_t bytes) override;
  // Gives the cached memory back to the system.
  void trim();
  int threads() const override { return threads_; }

  // At the end of the running op.
  void close() override { worker_.close(); }

 private:
  struct Item {
    const char* op = "";
    std::function<void(Stream&)> work;                // either work ...
    std::function<void(std::exception_ptr)> answer;   // ... or a wait
  };
  void begin() const;
  void run(Item& item);
  // A block of the system's, or null if it refuses, or would leave no room for the rest of the process.
  void* fresh(size_t block) const;

  const int threads_;
  const bool poisoned_;
  std::exception_ptr failure_;  // of the worker's thread: the first since the last wait

  mutable std::mutex memory_mutex_;
  std::map<size_t, std::vector<void*>> free_blocks_;  // size class -> blocks
  MemoryStats stats_;
  // The system has refused memory: until it has plenty again, what is released goes back to it.
  bool scarce_ = false;

  Worker<Item> worker_;  // last: starts when everything else is there
};

}  // namespace llamaforge

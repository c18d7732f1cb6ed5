// The CPU as a stream: one native thread, with an OpenMP team of its own, runs submitted work.
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
  void replay(std::shared_ptr<Recording> recording) override;
  void wait(std::function<void(std::exception_ptr)> done) override;
  size_t backlog() const override { return worker_.waiting(); }
  void when_backlog_at_most(size_t most, std::function<void()> done) override {
    worker_.when_at_most(most, std::move(done));
  }

  // Returns 64-byte aligned blocks. Released blocks are kept by size class for the next tensor of
  // that class.
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;

  void copy_to_host(void* host, const void* device, size_t bytes,
                    std::shared_ptr<void> keep) override;
  void copy_from_host(void* device, const void* host, size_t bytes) override;

  MemoryStats memory() const override;
  void reset_peak() override;
  void set_memory_limit(uint64_t bytes) override;
  // Gives the cached memory back to the system.
  void trim();
  int threads() const override { return threads_; }

  // Ends the worker after the running op.
  void close() override { worker_.close(); }

 private:
  struct Item {
    const char* op = "";
    std::function<void(Stream&)> work;               // either work ...
    std::function<void(std::exception_ptr)> answer;  // ... or a wait ...
    std::shared_ptr<Recording> recording;            // ... or a list of works
  };
  void begin() const;
  void run(Item& item);
  // Runs work, unless an earlier one has failed.
  void compute(const char* op, const std::function<void(Stream&)>& work);
  // Returns a block from the system, or null if the system refuses it or would have no room left
  // for the rest of the process.
  void* fresh(size_t block) const;

  const int threads_;
  const bool poisoned_;
  std::exception_ptr
      failure_;  // used on the worker's thread: the first failure since the last wait

  mutable std::mutex memory_mutex_;
  std::map<size_t, std::vector<void*>> free_blocks_;  // size class -> blocks
  MemoryStats stats_;
  // Set when the system has refused memory. Released blocks then go back to the system until it has
  // plenty again.
  bool scarce_ = false;

  Worker<Item> worker_;  // last member: starts after everything else is initialised
};

}  // namespace llamaforge

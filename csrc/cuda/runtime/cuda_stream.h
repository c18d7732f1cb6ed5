// One GPU as a stream. One thread of the stream, the launcher, runs submitted work: it allocates
// and launches kernels, and it is the thread that CUDA blocks when CUDA's own queue of some 1,024
// launches is full. A second thread waits for events. So JavaScript only records and never waits.
// Memory is handed out again in the order of the compute stream.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/runtime/arena.h"
#include "cuda/runtime/completion_queue.h"
#include "cuda/runtime/cuda_error.h"
#include "cuda/runtime/fault.h"
#include "cuda/runtime/pinned_pool.h"
#include "runtime/stream.h"
#include "runtime/worker.h"

namespace llamaforge::cuda {

// The stream's matrix products: cuBLASLt's handle, workspace and chosen algorithms (gemm.cpp).
class GemmContext;

// Ops of a graph that wait for the ops after them, so that one kernel can do all of them
// (gemm/chain.h).
class Unlaunched {
 public:
  virtual ~Unlaunched() = default;
  virtual void launch() = 0;
};

class CudaStream final : public Stream {
 public:
  // Throws ERR_DEVICE if there is no such device or it is too old.
  explicit CudaStream(int index);
  ~CudaStream() override;

  // ---- Stream
  void submit(const char* op, std::function<void(Stream&)> work) override;
  void replay(std::shared_ptr<Recording> recording) override;
  void wait(std::function<void(std::exception_ptr)> done) override;
  size_t backlog() const override { return launcher_->waiting(); }
  void when_backlog_at_most(size_t most, std::function<void()> done) override {
    launcher_->when_at_most(most, std::move(done));
  }
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;
  void copy_to_host(void* host, const void* device, size_t bytes,
                    std::shared_ptr<void> keep) override;
  void copy_from_host(void* device, const void* host, size_t bytes) override;
  void will_write(const void* memory, size_t bytes) override;
  MemoryStats memory() const override;
  void reset_peak() override;
  void set_memory_limit(uint64_t bytes) override;
  int threads() const override { return 0; }
  void close() override;

  // Runs `action` on the launcher after everything submitted before, whether that failed or not.
  // `action` must not throw.
  void in_order(std::function<void()> action);

  // ---- for kernels, on the launcher
  // The stream of all kernels. Ops that are unlaunched come before whatever the caller launches.
  cudaStream_t compute() const {
    if (unlaunched_) launch_unlaunched();
    return compute_;
  }
  cudaStream_t communication() const { return communication_; }
  int index() const { return index_; }
  int multiprocessors() const { return multiprocessors_; }
  // 10 * major + minor.
  int compute_capability() const { return compute_capability_; }
  // Returns the site with which kernels report bad data; code and pattern are literals. See
  // fault.h.
  FaultSite fault_site(const char* code, const char* pattern);
  GemmContext& gemm();
  // Whether the launches of the running op become part of a graph. They must not wait, and the GPU
  // runs them later.
  bool capturing() const { return graph_ != nullptr; }
  // Whether the running op becomes part of a graph in which no earlier op writes this memory. A
  // kernel of it may read the memory while the kernels before it still run.
  bool unwritten(const void* memory) const;
  // Ops of the graph that are not launched yet, or null.
  Unlaunched* unlaunched() const { return unlaunched_.get(); }
  void hold(std::unique_ptr<Unlaunched> ops) { unlaunched_ = std::move(ops); }
  // Returns memory of the graph that has this content when the graph runs for the first time.
  void* graph_memory(std::vector<char> content);
  // Counters of kernels whose last block does more than the others. All are 0 when a kernel begins,
  // and must be 0 when it ends.
  static constexpr int kCounters = 1 << 16;
  unsigned* counters() const { return counters_; }

 private:
  struct Site {
    const char *op, *code, *pattern;
  };
  struct Command {
    const char* op = "";
    std::function<void(Stream&)> work;               // either work ...
    std::function<void(std::exception_ptr)> answer;  // ... or a wait ...
    std::function<void()> action = {};               // ... or an action ...
    std::shared_ptr<Recording> recording = {};       // ... or a list of works
  };
  struct Waiting;
  struct Graph;  // cuda_graph.h

  // Number of ops between two events at which the launcher may sleep. The launcher is at most five
  // times as far ahead of the GPU, which CUDA's queue of some 1,024 launches has room for.
  static constexpr size_t kPace = 128;
  static size_t rounded(size_t bytes) {
    constexpr size_t kGranularity = 512;  // of the device's allocator
    return std::max(kGranularity, (bytes + kGranularity - 1) / kGranularity * kGranularity);
  }

  void push(Command command);
  void run(Command& command);
  // Runs work. A failure becomes the failure of the next wait.
  void launch(const char* op, const std::function<void(Stream&)>& work) noexcept;
  void run_recording(const std::shared_ptr<Recording>& recording);
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
  // Makes a graph of a recording that has run.
  void capture(Recording& recording);
  void launch_unlaunched() const;
  // Sleeps while the GPU is far behind, because CUDA's own wait on a full queue keeps a core busy.
  void pace() noexcept;
  void answer(std::function<void(std::exception_ptr)> done);
  // Called before static objects of CUDA's libraries are destroyed, while threads of this process
  // may still launch.
  static void rest_all();

  void throw_if_lost(const char* op) const;
  void mark_lost(const std::string& message) noexcept;
  // Returns null if there is no memory.
  void* take_memory(size_t bytes);
  void* take_block(size_t bytes);
  void give_back(void* memory, size_t bytes) noexcept;
  void give_back_unused();
  // Returns the error that a kernel recorded, or null.
  std::exception_ptr failure_from(const FaultRecord& record) const;

  const int index_;
  int multiprocessors_ = 0, compute_capability_ = 0;
  bool synchronous_ = false, poisoned_ = false, one_by_one_ = false;
  cudaStream_t compute_ = nullptr, communication_ = nullptr;
  FaultRecord* fault_record_ = nullptr;
  unsigned* counters_ = nullptr;

  // Launcher's state: the op that is being launched, and the first failure since the last wait.
  const char* op_ = "";
  std::exception_ptr failure_;
  size_t launched_ = 0;
  Graph* graph_ = nullptr;  // the graph that the running op becomes part of
  mutable std::unique_ptr<Unlaunched> unlaunched_;
  std::array<cudaEvent_t, 4> paces_ = {};  // one per kPace ops, in turn
  mutable std::mutex sites_mutex_;
  std::vector<Site> sites_;

  std::atomic<bool> lost_{false};
  mutable std::mutex lost_mutex_;
  std::string lost_message_;

  mutable std::mutex memory_mutex_;
  MemoryStats stats_;
  Arena arena_;

  PinnedPool pinned_;
  std::unique_ptr<CompletionQueue> completions_;
  std::unique_ptr<GemmContext> gemm_;
  std::unique_ptr<Worker<Command>>
      launcher_;  // last member: starts after everything else is initialised
};

// The stream that an op was submitted to.
inline CudaStream& on_cuda(Stream& stream) { return static_cast<CudaStream&>(stream); }

}  // namespace llamaforge::cuda

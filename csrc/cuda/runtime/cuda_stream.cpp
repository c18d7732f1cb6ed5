#include "cuda/runtime/cuda_stream.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <set>
#include <utility>

#include "cuda/gemm/gemm_context.h"
#include "cuda/runtime/cuda_graph.h"
#include "cuda/runtime/small_copy.h"
#include "runtime/settings.h"

namespace llamaforge::cuda {

namespace {

constexpr size_t kChunk = size_t{32} << 20;  // part of a long copy
constexpr size_t kMostPinned = size_t{256} << 20;
constexpr int kOldestCapability = 80;
// The launcher looks for more work this long before it sleeps. JavaScript records an operation in
// one to two microseconds, so it seldom has to pay for waking the launcher.
constexpr std::chrono::microseconds kSpin{50};
constexpr std::chrono::milliseconds kRestTime{
    2000};  // for a launch in progress when the process ends

// Never destroyed, because it is needed until the very end of the process.
struct Living {
  std::mutex mutex;
  std::set<CudaStream*> streams;
};
Living& living() {
  static Living& all = *new Living;
  return all;
}

// The stream whose launcher this thread is.
thread_local const CudaStream* launches_for = nullptr;

// Writes a double that is a whole number as an integer.
std::string text_of(double value) {
  if (std::floor(value) == value && std::abs(value) < 1e15)
    return std::to_string(static_cast<int64_t>(value));
  return format("{}", value);
}

}  // namespace

namespace {

// Allocates a segment of the arena. Without memory it returns null and clears CUDA's error.
void* take_segment(size_t bytes) {
  void* segment = nullptr;
  const cudaError_t error = cudaMalloc(&segment, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  LF_CUDA_CHECK(error);
  return segment;
}

void free_segment(void* segment) { cudaFree(segment); }

// Runs `work` with the lock released. The arena is called under the lock but must not hold it while
// it asks for a segment: CUDA may then wait for the GPU, and JavaScript, which reads memory figures
// and gives tensors back, must not wait too.
template <class Work>
auto without(std::mutex& mutex, Work work) {
  struct Relock {
    std::mutex& mutex;
    ~Relock() { mutex.lock(); }
  };
  mutex.unlock();
  const Relock relock{mutex};
  return work();
}

}  // namespace

CudaStream::CudaStream(int index)
    : index_(index),
      arena_(
          [this](size_t bytes) {
            return without(memory_mutex_, [bytes] { return take_segment(bytes); });
          },
          free_segment) {
  int count = 0;
  LF_CUDA_CHECK(cudaGetDeviceCount(&count));
  if (index < 0 || index >= count) {
    throw Error("ERR_DEVICE", format("cuda:{} does not exist: this process sees {} GPU{}", index,
                                     count, count == 1 ? "" : "s"));
  }
  int major = 0, minor = 0;
  LF_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  LF_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  compute_capability_ = 10 * major + minor;
  if (compute_capability_ < kOldestCapability) {
    throw Error("ERR_DEVICE",
                format("cuda:{} has compute capability {}.{}; 8.0 (A100) or newer is needed", index,
                       major, minor));
  }
  cublaslt();  // everything here needs it: a missing library shows now, not in the middle of a run
  LF_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, index));
  synchronous_ = is_on("LLAMAFORGE_CUDA_SYNC");
  poisoned_ = is_on("LLAMAFORGE_POISON");
  one_by_one_ = is_on("LLAMAFORGE_CUDA_ALLOCATE_EACH");

  LF_CUDA_CHECK(cudaSetDevice(index));
  LF_CUDA_CHECK(cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking));
  // A collective's few blocks have priority over a kernel that fills the GPU, because other ranks
  // wait for them.
  int least_priority = 0, greatest_priority = 0;
  LF_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least_priority, &greatest_priority));
  LF_CUDA_CHECK(
      cudaStreamCreateWithPriority(&communication_, cudaStreamNonBlocking, greatest_priority));
  LF_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&fault_record_), sizeof(FaultRecord)));
  LF_CUDA_CHECK(cudaMemsetAsync(fault_record_, 0, sizeof(FaultRecord), compute_));
  LF_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&counters_), kCounters * sizeof(unsigned)));
  LF_CUDA_CHECK(cudaMemsetAsync(counters_, 0, kCounters * sizeof(unsigned), compute_));
  completions_ = std::make_unique<CompletionQueue>(index);
  gemm_ = std::make_unique<GemmContext>(*this);
  launcher_ = std::make_unique<Worker<Command>>(
      Worker<Command>::Calls{.work = [this](Command& command) { run(command); },
                             .begin =
                                 [this, index] {
                                   cudaSetDevice(index);
                                   launches_for = this;
                                 }},
      kSpin);
  // Now that CUDA's libraries are there: what is registered last runs first.
  static std::once_flag registered;
  std::call_once(registered, [] { std::atexit(rest_all); });
  std::lock_guard lock(living().mutex);
  living().streams.insert(this);
}

// The results of these calls are ignored: after the loss of the device, or at the end of the
// process, the calls fail.
CudaStream::~CudaStream() {
  {
    std::lock_guard lock(living().mutex);
    living().streams.erase(this);
  }
  close();
  cudaSetDevice(index_);
  gemm_.reset();
  for (cudaEvent_t event : paces_) {
    if (event) cudaEventDestroy(event);
  }
  cudaFree(fault_record_);
  cudaFree(counters_);
  if (compute_) cudaStreamDestroy(compute_);
  if (communication_) cudaStreamDestroy(communication_);
}

void CudaStream::close() {
  launcher_->close();
  completions_.reset();
  if (compute_ && !lost_)
    cudaStreamSynchronize(compute_);  // copies must end before their pinned blocks are freed
}

// A program may end itself while the launcher is in the middle of a call, and Node then destroys
// nothing.
void CudaStream::rest_all() {
  std::lock_guard lock(living().mutex);
  for (CudaStream* stream : living().streams) stream->launcher_->rest(kRestTime);
}

// ---- work ---------------------------------------------------------------------------------------

void CudaStream::throw_if_lost(const char* op) const {
  if (!lost_) return;
  std::lock_guard lock(lost_mutex_);
  throw Error("ERR_DEVICE_LOST", format("[{}] cuda:{} was lost: {}", op, index_, lost_message_));
}

void CudaStream::mark_lost(const std::string& message) noexcept {
  std::lock_guard lock(lost_mutex_);
  if (lost_) return;
  lost_message_ = message;
  lost_ = true;
}

void CudaStream::push(Command command) {
  const char* op = command.op;
  if (!launcher_->push(std::move(command))) {
    throw Error("ERR_DEVICE", format("[{}] the device has been closed", op));
  }
}

void CudaStream::submit(const char* op, std::function<void(Stream&)> work) {
  throw_if_lost(op);
  push({op, std::move(work), nullptr});
}

void CudaStream::replay(std::shared_ptr<Recording> recording) {
  throw_if_lost("replay");
  push({.op = "replay", .work = nullptr, .answer = nullptr, .recording = std::move(recording)});
}

void CudaStream::wait(std::function<void(std::exception_ptr)> done) {
  throw_if_lost("synchronize");
  push({"synchronize", nullptr, std::move(done)});
}

void CudaStream::in_order(std::function<void()> action) {
  push({"", nullptr, nullptr, std::move(action)});
}

void CudaStream::run(Command& command) {
  if (command.action) {
    command.action();
  } else if (command.answer) {
    answer(std::move(command.answer));
  } else if (!failure_) {
    if (command.recording) {
      run_recording(command.recording);
    } else {
      launch(command.op, command.work);
      if (++launched_ % kPace == 0) pace();
    }
  }
}

// Ignores failures, of the GPU or of an event that could not be made: the next wait reports them.
void CudaStream::pace() noexcept {
  cudaEvent_t& event = paces_[launched_ / kPace % paces_.size()];
  if (event) {
    cudaEventSynchronize(event);
  } else if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync) !=
             cudaSuccess) {
    event = nullptr;
  }
  if (event) cudaEventRecord(event, compute_);
}

void CudaStream::launch(const char* op, const std::function<void(Stream&)>& work) noexcept {
  op_ = op;
  try {
    work(*this);
    if (synchronous_) LF_CUDA_CHECK(cudaStreamSynchronize(compute_));
  } catch (const Error& error) {
    const std::string message = format("[{}] {}", op, error.what());
    if (error.code() == "ERR_DEVICE_LOST") mark_lost(message);
    failure_ = std::make_exception_ptr(Error(error.code(), message));
  } catch (const std::bad_alloc&) {
    failure_ =
        std::make_exception_ptr(Error("ERR_OUT_OF_MEMORY", format("[{}] out of host memory", op)));
  } catch (const std::exception& error) {
    failure_ = std::make_exception_ptr(Error("ERR_NATIVE", format("[{}] {}", op, error.what())));
  } catch (...) {
    failure_ = std::make_exception_ptr(Error("ERR_NATIVE", format("[{}] unknown failure", op)));
  }
}

// ---- waits --------------------------------------------------------------------------------------

// State of a wait until its event: the failure of a submission, and the place where the device's
// own record arrives.
struct CudaStream::Waiting {
  std::exception_ptr failure;
  std::function<void(std::exception_ptr)> done;
  FaultRecord* record;  // pinned
};

void CudaStream::answer(std::function<void(std::exception_ptr)> done) {
  auto waiting = std::make_shared<Waiting>(
      Waiting{std::exchange(failure_, nullptr), std::move(done), nullptr});
  try {
    throw_if_lost("synchronize");
    waiting->record = static_cast<FaultRecord*>(pinned_.take(sizeof(FaultRecord)));
    FaultRecord* record = waiting->record;
    take_record(record, fault_record_, compute_);
    completions_->when_reached(compute_, [this, waiting](cudaError_t error) {
      std::exception_ptr failure = waiting->failure;
      if (error != cudaSuccess) {
        const Error cause = error_of(error, "a kernel that ran before this wait");
        if (is_sticky(error)) mark_lost(cause.what());
        if (!failure || is_sticky(error)) failure = std::make_exception_ptr(cause);
      } else if (waiting->record->site != 0) {
        // A kernel's report precedes any operation that failed to be submitted later.
        failure = failure_from(*waiting->record);
      }
      pinned_.give(waiting->record, sizeof(FaultRecord));
      waiting->done(failure);
    });
  } catch (const Error& error) {
    if (waiting->record) pinned_.give(waiting->record, sizeof(FaultRecord));
    if (error.code() == "ERR_DEVICE_LOST") mark_lost(error.what());
    waiting->done(waiting->failure ? waiting->failure : std::current_exception());
  } catch (...) {
    waiting->done(
        std::make_exception_ptr(Error("ERR_OUT_OF_MEMORY", "[synchronize] out of host memory")));
  }
}

FaultSite CudaStream::fault_site(const char* code, const char* pattern) {
  std::lock_guard lock(sites_mutex_);
  size_t number = 0;
  for (; number < sites_.size(); ++number) {
    const Site& site = sites_[number];
    if (site.op == op_ && site.code == code && site.pattern == pattern) break;
  }
  if (number == sites_.size()) sites_.push_back({op_, code, pattern});
  return {fault_record_, static_cast<int>(number)};
}

std::exception_ptr CudaStream::failure_from(const FaultRecord& record) const {
  std::lock_guard lock(sites_mutex_);
  const Site& site = sites_.at(static_cast<size_t>(record.site - 1));
  const auto& value = record.values;
  const std::string what = format(site.pattern, text_of(value[0]), text_of(value[1]),
                                  text_of(value[2]), text_of(value[3]));
  return std::make_exception_ptr(Error(site.code, format("[{}] {}", site.op, what)));
}

GemmContext& CudaStream::gemm() { return *gemm_; }

// ---- memory -------------------------------------------------------------------------------------

void* CudaStream::allocate(size_t bytes) {
  throw_if_lost(op_);
  const size_t block = rounded(bytes);
  if (graph_) {
    for (Graph::Block& kept : graph_->blocks) {
      if (!kept.free || kept.bytes != block) continue;
      kept.free = false;
      if (poisoned_) LF_CUDA_CHECK(cudaMemsetAsync(kept.memory, 0xff, block, compute()));
      return kept.memory;
    }
    void* memory = take_block(block);
    graph_->blocks.push_back({memory, block, false});
    return memory;
  }
  return take_block(block);
}

void* CudaStream::take_block(size_t block) {
  std::unique_lock lock(memory_mutex_);
  if (stats_.limit && stats_.used + block > stats_.limit) {
    throw Error("ERR_OUT_OF_MEMORY",
                format("needs {} bytes more, but {} of the allowed {} are in use: use a smaller "
                       "micro-batch, more recompute, or raise the limit",
                       block, stats_.used, stats_.limit));
  }
  void* memory = take_memory(block);
  if (!memory) {
    // Segments of other sizes may lie unused. The running work is allowed to end, unused segments
    // are given back, and the allocation is tried once more. This happens without the lock: the
    // running work may wait for a rank that hangs, and the watchdog, which ends that wait, gives
    // back tensors on its way.
    lock.unlock();
    // A capture must not wait.
    if (!graph_) give_back_unused();
    lock.lock();
    memory = take_memory(block);
  }
  if (!memory) {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    free += arena_.reserved() > stats_.used ? arena_.reserved() - stats_.used : 0;
    throw Error("ERR_OUT_OF_MEMORY", format("needs {} bytes more, but cuda:{} has {} of {} free "
                                            "and {} are in use here: use a smaller "
                                            "micro-batch or more recompute",
                                            block, index_, free, total, stats_.used));
  }
  stats_.used += block;
  stats_.peak = std::max(stats_.peak, stats_.used);
  // With LLAMAFORGE_POISON=1 fresh memory is NaN in every dtype, so a kernel that leaves holes is
  // seen.
  if (poisoned_) LF_CUDA_CHECK(cudaMemsetAsync(memory, 0xff, block, compute()));
  return memory;
}

// With LLAMAFORGE_CUDA_ALLOCATE_EACH=1 every block is an allocation of its own, so that
// compute-sanitizer sees where it ends.
void* CudaStream::take_memory(size_t bytes) {
  if (!one_by_one_) return arena_.take(bytes);
  void* memory = nullptr;
  const cudaError_t error = cudaMallocAsync(&memory, bytes, compute_);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  LF_CUDA_CHECK(error);
  return memory;
}

void CudaStream::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  // Scratch memory of a capture becomes the graph's. Only the launcher takes it, but other threads
  // may release tensors meanwhile.
  if (launches_for == this && graph_) {
    for (Graph::Block& block : graph_->blocks) {
      if (block.memory != memory) continue;
      block.free = true;
      return;
    }
  }
  give_back(memory, bytes);
}

void CudaStream::give_back(void* memory, size_t bytes) noexcept {
  std::lock_guard lock(memory_mutex_);
  stats_.used -= rounded(bytes);
  if (!one_by_one_) {
    arena_.give(memory);
  } else if (!lost_) {
    cudaFreeAsync(memory, compute_);
  }
}

// Waits for the device, so it must not be called with the lock.
void CudaStream::give_back_unused() {
  LF_CUDA_CHECK(cudaStreamSynchronize(compute_));
  std::vector<void*> segments;
  {
    std::lock_guard lock(memory_mutex_);
    segments = arena_.take_unused();
  }
  for (void* segment : segments) free_segment(segment);
}

// A copy between the device and pinned host memory.
void CudaStream::copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes <= kMostSmall) return copy_small(to, from, bytes, compute_);
  LF_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, compute_));
}

// The copy goes through a pinned block, which is given back when the device is done with it.
void CudaStream::copy_to_host(void* host, const void* device, size_t bytes,
                              std::shared_ptr<void> keep) {
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(kChunk, bytes - done);
    if (pinned_.taken() > kMostPinned) completions_->drain();
    void* block = pinned_.take(part);
    try {
      copy(block, static_cast<const char*>(device) + done, part, cudaMemcpyDeviceToHost);
      char* target = static_cast<char*>(host) + done;
      completions_->when_reached(compute_, [this, block, part, target, keep](cudaError_t error) {
        if (error == cudaSuccess) std::memcpy(target, block, part);
        pinned_.give(block, part);
      });
    } catch (...) {
      pinned_.give(block, part);
      throw;
    }
    done += part;
  }
}

void CudaStream::copy_from_host(void* device, const void* host, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(kChunk, bytes - done);
    if (pinned_.taken() > kMostPinned) completions_->drain();
    void* block = pinned_.take(part);
    std::memcpy(block, static_cast<const char*>(host) + done, part);
    try {
      copy(static_cast<char*>(device) + done, block, part, cudaMemcpyHostToDevice);
      completions_->when_reached(compute_,
                                 [this, block, part](cudaError_t) { pinned_.give(block, part); });
    } catch (...) {
      pinned_.give(block, part);
      throw;
    }
    done += part;
  }
}

MemoryStats CudaStream::memory() const {
  std::lock_guard lock(memory_mutex_);
  MemoryStats stats = stats_;
  stats.cached = arena_.reserved() > stats.used ? arena_.reserved() - stats.used : 0;
  return stats;
}

void CudaStream::reset_peak() {
  std::lock_guard lock(memory_mutex_);
  stats_.peak = stats_.used;
}

void CudaStream::set_memory_limit(uint64_t bytes) {
  std::lock_guard lock(memory_mutex_);
  stats_.limit = bytes;
}

}  // namespace llamaforge::cuda

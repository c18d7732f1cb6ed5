#include "runtime/cpu_stream.h"

#include <malloc.h>
#include <omp.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "runtime/error.h"
#include "runtime/room.h"
#include "runtime/settings.h"

namespace llamaforge {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kWorthProbing =
    size_t{64} << 10;  // smaller blocks are allocated without asking for extra room

// Rounds up to one of eight classes per power of two, so at most 12.5% is wasted and a freed block
// finds its next user.
size_t size_class(size_t bytes) {
  if (bytes <= kAlignment) return kAlignment;
  size_t power = kAlignment;
  while (power * 2 < bytes) power *= 2;
  const size_t step = std::max(kAlignment, power / 8);
  return (bytes + step - 1) / step * step;
}

}  // namespace

CpuStream::CpuStream(int threads)
    : threads_(threads),
      poisoned_(is_on("LLAMAFORGE_POISON")),
      worker_({.work = [this](Item& item) { run(item); }, .begin = [this] { begin(); }}) {}

CpuStream::~CpuStream() {
  close();
  trim();
}

void CpuStream::submit(const char* op, std::function<void(Stream&)> work) {
  if (!worker_.push({op, std::move(work), nullptr, nullptr})) {
    throw Error("ERR_DEVICE", format("[{}] the device has been closed", op));
  }
}

void CpuStream::replay(std::shared_ptr<Recording> recording) {
  if (!worker_.push({"replay", nullptr, nullptr, std::move(recording)})) {
    throw Error("ERR_DEVICE", "[replay] the device has been closed");
  }
}

void CpuStream::wait(std::function<void(std::exception_ptr)> done) {
  if (!worker_.push({"synchronize", nullptr, std::move(done), nullptr})) {
    throw Error("ERR_DEVICE", "[synchronize] the device has been closed");
  }
}

void CpuStream::begin() const {
  omp_set_dynamic(0);
  omp_set_num_threads(threads_);
  // The team starts now, because the system may refuse its threads later, and OpenMP would then end
  // the process.
  std::atomic<int> started{0};
#pragma omp parallel
  ++started;
}

void CpuStream::run(Item& item) {
  if (item.answer) {
    item.answer(std::exchange(failure_, nullptr));
    return;
  }
  if (!item.recording) return compute(item.op, item.work);
  for (const Recording::Op& op : item.recording->ops()) compute(op.name, op.work);
}

void CpuStream::compute(const char* op, const std::function<void(Stream&)>& work) {
  if (failure_) return;
  try {
    work(*this);
  } catch (const Error& error) {
    failure_ = std::make_exception_ptr(Error(error.code(), format("[{}] {}", op, error.what())));
  } catch (const std::bad_alloc&) {
    trim();
    failure_ =
        std::make_exception_ptr(Error("ERR_OUT_OF_MEMORY", format("[{}] out of host memory", op)));
  } catch (const std::exception& error) {
    failure_ = std::make_exception_ptr(Error("ERR_NATIVE", format("[{}] {}", op, error.what())));
  } catch (...) {
    failure_ = std::make_exception_ptr(Error("ERR_NATIVE", format("[{}] unknown failure", op)));
  }
}

void* CpuStream::allocate(size_t bytes) {
  const size_t block = size_class(bytes);
  void* memory = nullptr;
  {
    std::lock_guard lock(memory_mutex_);
    if (stats_.limit && stats_.used + block > stats_.limit) {
      throw Error("ERR_OUT_OF_MEMORY", format("needs {} bytes more, but {} of the allowed {} are "
                                              "in use: use a smaller micro-batch, more "
                                              "recompute, or raise the limit",
                                              block, stats_.used, stats_.limit));
    }
    auto found = free_blocks_.find(block);
    if (found != free_blocks_.end() && !found->second.empty()) {
      memory = found->second.back();
      found->second.pop_back();
      stats_.cached -= block;
    }
    stats_.used += block;
    stats_.peak = std::max(stats_.peak, stats_.used);
  }
  if (!memory) {
    memory = fresh(block);
    if (!memory) {
      trim();
      memory = fresh(block);
    }
    std::lock_guard lock(memory_mutex_);
    // Caching resumes only once there is twice the room, because the refused block may have been
    // small.
    scarce_ = !memory || (scarce_ && !has_room(2 * kReserve));
    if (!memory) {
      stats_.used -= block;
      throw Error("ERR_OUT_OF_MEMORY", format("the system refused {} bytes; {} are in use: use a "
                                              "smaller micro-batch or more recompute",
                                              block, stats_.used));
    }
  }
  // With LLAMAFORGE_POISON=1 fresh memory is NaN in every dtype, so that gaps in a kernel's output
  // show.
  if (poisoned_) std::memset(memory, 0xff, block);
  return memory;
}

void* CpuStream::fresh(size_t block) const {
  const bool large = block >= 2 * kHugePage;
  const size_t alignment = large ? kHugePage : kAlignment;
  void* memory = std::aligned_alloc(alignment, (block + alignment - 1) / alignment * alignment);
  if (!memory) return nullptr;
  if ((block >= kWorthProbing || scarce_) && !has_room(kReserve)) {
    std::free(memory);
    return nullptr;
  }
  // Large pages save most of the page faults and TLB misses of weights and activations.
  if (large) madvise(memory, block, MADV_HUGEPAGE);
  return memory;
}

void CpuStream::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  const size_t block = size_class(bytes);
  std::lock_guard lock(memory_mutex_);
  stats_.used -= block;
  if (scarce_) return std::free(memory);
  try {
    free_blocks_[block].push_back(memory);
    stats_.cached += block;
  } catch (...) {
    std::free(memory);
  }
}

void CpuStream::copy_to_host(void* host, const void* device, size_t bytes, std::shared_ptr<void>) {
  std::memcpy(host, device, bytes);
}
void CpuStream::copy_from_host(void* device, const void* host, size_t bytes) {
  std::memcpy(device, host, bytes);
}

MemoryStats CpuStream::memory() const {
  std::lock_guard lock(memory_mutex_);
  return stats_;
}

void CpuStream::reset_peak() {
  std::lock_guard lock(memory_mutex_);
  stats_.peak = stats_.used;
}

void CpuStream::set_memory_limit(uint64_t bytes) {
  std::lock_guard lock(memory_mutex_);
  stats_.limit = bytes;
}

void CpuStream::trim() {
  std::lock_guard lock(memory_mutex_);
  for (auto& [block, blocks] : free_blocks_) {
    for (void* memory : blocks) std::free(memory);
  }
  free_blocks_.clear();
  stats_.cached = 0;
  malloc_trim(0);  // free() alone keeps the memory between blocks that are in use
}

}  // namespace llamaforge

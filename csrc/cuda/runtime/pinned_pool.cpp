#include "cuda/runtime/pinned_pool.h"

#include <cuda_runtime_api.h>

#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {

PinnedPool::~PinnedPool() {
  for (auto& [size, blocks] : free_) {
    for (void* block : blocks) cudaFreeHost(block);
  }
}

size_t PinnedPool::size_class(size_t bytes) {
  size_t size = 4096;
  while (size < bytes) size *= 2;
  return size;
}

void* PinnedPool::take(size_t bytes) {
  const size_t size = size_class(bytes);
  {
    std::lock_guard lock(mutex_);
    taken_ += size;
    auto& blocks = free_[size];
    if (!blocks.empty()) {
      void* block = blocks.back();
      blocks.pop_back();
      return block;
    }
    blocks.reserve(64);  // so that give() never allocates
  }
  void* block = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&block, size, cudaHostAllocDefault);
      error != cudaSuccess) {
    std::lock_guard lock(mutex_);
    taken_ -= size;
    throw error_of(error, "cudaHostAlloc");
  }
  return block;
}

void PinnedPool::give(void* block, size_t bytes) noexcept {
  const size_t size = size_class(bytes);
  std::lock_guard lock(mutex_);
  taken_ -= size;
  auto& blocks = free_[size];
  if (blocks.size() == blocks.capacity()) {
    cudaFreeHost(block);
  } else {
    blocks.push_back(block);
  }
}

size_t PinnedPool::taken() const {
  std::lock_guard lock(mutex_);
  return taken_;
}

}  // namespace llamaforge::cuda

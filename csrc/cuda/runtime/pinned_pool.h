// Page-locked host memory for copies that run while the program continues. Blocks are kept and
// reused, because locking pages is slow.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

namespace llamaforge::cuda {

class PinnedPool {
 public:
  ~PinnedPool();

  // Throws ERR_OUT_OF_MEMORY.
  void* take(size_t bytes);
  void give(void* block, size_t bytes) noexcept;
  // Bytes of the blocks that are taken now.
  size_t taken() const;

 private:
  static size_t size_class(size_t bytes);

  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  size_t taken_ = 0;
};

}  // namespace llamaforge::cuda

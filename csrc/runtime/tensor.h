// Storage and Tensor, the kernels' view of data. A tensor is a contiguous view of a
// reference-counted storage.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace llamaforge {

class Stream;

using Shape = std::vector<int64_t>;
using IntList = std::vector<int64_t>;

std::string to_string(const Shape& shape);

// Memory of one device. It is allocated when the first op that writes it runs, and freed when the
// last reference is gone. References are held by JS handles and by ops still in the queue, so
// memory follows the order of the stream, not that of the program that runs ahead of it.
class Storage {
 public:
  Storage(std::shared_ptr<Stream> stream, size_t bytes)
      : stream_(std::move(stream)), bytes_(bytes) {}
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  size_t bytes() const { return bytes_; }
  Stream& stream() const { return *stream_; }
  const std::shared_ptr<Stream>& shared_stream() const { return stream_; }

  bool computed() const { return data_ != nullptr; }
  void* data() const { return data_; }
  // Called in stream order, before the first op that writes. Throws ERR_OUT_OF_MEMORY.
  void allocate();
  // Frees the memory, in stream order: the storage then counts as never computed.
  void forget() noexcept;

 private:
  std::shared_ptr<Stream> stream_;
  size_t bytes_;
  void* data_ = nullptr;
};

// The storages that one op with at most `kMost` outputs allocates. If the op fails, their contents
// are no result: unless the op calls done(), they count as never computed. Storages that were
// computed before stay as they are.
template <size_t kMost>
class Fresh {
 public:
  Fresh() = default;
  ~Fresh() {
    for (size_t i = 0; i < count_; ++i) storages_[i]->forget();
  }
  Fresh(const Fresh&) = delete;
  Fresh& operator=(const Fresh&) = delete;

  void allocate(Storage& storage) {
    if (storage.computed()) return;
    storage.allocate();
    storages_[count_++] = &storage;
  }
  void done() { count_ = 0; }

 private:
  std::array<Storage*, kMost> storages_;
  size_t count_ = 0;
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // in elements
  Shape shape;
  DType dtype = DType::f32;

  int64_t rank() const { return static_cast<int64_t>(shape.size()); }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return count;
  }
  // Size of an axis; negative axes count from the last.
  int64_t dim(int64_t axis) const {
    return shape.at(static_cast<size_t>(axis < 0 ? axis + rank() : axis));
  }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype); }

  void* raw() const {
    return static_cast<char*>(storage->data()) + static_cast<size_t>(offset) * size_of(dtype);
  }
  template <class T>
  T* data() const {
    if (dtype_of<T>() != dtype) {
      throw Error("ERR_DTYPE",
                  format("expected dtype {}, got {}", name_of(dtype_of<T>()), name_of(dtype)));
    }
    return static_cast<T*>(raw());
  }
};

// A tensor on the device of `like` with memory of its own, for ops that are composed of others.
// Called in stream order.
Tensor temporary(const Tensor& like, Shape shape, DType dtype);

// The role of a tensor in a kernel's signature. From the role the binding derives the condition
// that must hold before the kernel runs.
struct In : Tensor {};  // read; must have been computed
struct Out : Tensor {
};  // written whole; allocated when the op runs. It may be the same memory as an In.
struct InOut : Tensor {};  // read and written

}  // namespace llamaforge

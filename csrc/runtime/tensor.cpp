#include "runtime/tensor.h"

#include <utility>

#include "runtime/stream.h"

namespace llamaforge {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis) text += ",";
    text += std::to_string(shape[axis]);
  }
  return text + "]";
}

Storage::~Storage() { forget(); }

void Storage::allocate() {
  if (!data_) data_ = stream_->allocate(bytes_);
}

void Storage::forget() noexcept {
  if (data_) stream_->release(std::exchange(data_, nullptr), bytes_);
}

Tensor temporary(const Tensor& like, Shape shape, DType dtype) {
  Tensor tensor{nullptr, 0, std::move(shape), dtype};
  tensor.storage = std::make_shared<Storage>(like.storage->shared_stream(), tensor.bytes());
  tensor.storage->allocate();
  return tensor;
}

}  // namespace llamaforge

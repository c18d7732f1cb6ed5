// Walks several tensors that broadcast to one shape. As on the CPU, axes of size 1 are dropped and
// axes that all operands traverse alike are joined, so along the last remaining axis every operand
// advances by 1 or stands still. A thread takes a pack of consecutive elements of that axis, so it
// computes one position for up to 8 elements.
#pragma once

#include <array>

#include "cuda/ops/pack.h"

namespace llamaforge::cuda {

template <int N>
struct Broadcast {
  int axes = 0;  // at least 1
  int64_t numel = 1;
  uint32_t sizes[kMostAxes];      // outermost first
  int64_t strides[kMostAxes][N];  // of each operand, per axis
  bool advances[N];               // does the operand move along the last axis?
};

// Throws ERR_SHAPE, naming the operand, if it does not broadcast to `shape`.
template <int N>
Broadcast<N> plan_broadcast(const Shape& shape, const std::array<const Tensor*, N>& operands) {
  const size_t rank = shape.size();
  check_axes(shape);
  int64_t strides[kMostAxes][N] = {};
  for (int k = 0; k < N; ++k) {
    const Shape& own = operands[k]->shape;
    LF_CHECK(own.size() <= rank, "operand {} of shape {} does not broadcast to {}", k, to_string(own),
             to_string(shape));
    const size_t lead = rank - own.size();
    int64_t step = 1;
    for (size_t axis = rank; axis-- > 0;) {
      const int64_t size = axis < lead ? 1 : own[axis - lead];
      LF_CHECK(size == 1 || size == shape[axis], "operand {} of shape {} does not broadcast to {}", k, to_string(own),
               to_string(shape));
      strides[axis][k] = size == 1 ? 0 : step;
      step *= size;
    }
  }
  Broadcast<N> plan;
  auto joins = [&](size_t axis) {
    if (plan.axes == 0 || int64_t{plan.sizes[plan.axes - 1]} * shape[axis] > UINT32_MAX) return false;
    for (int k = 0; k < N; ++k) {
      if (plan.strides[plan.axes - 1][k] != strides[axis][k] * shape[axis]) return false;
    }
    return true;
  };
  for (size_t axis = 0; axis < rank; ++axis) {
    if (shape[axis] == 1) continue;
    LF_CHECK(shape[axis] <= UINT32_MAX, "axis {} of {} is too long", axis, to_string(shape));
    plan.numel *= shape[axis];
    if (joins(axis)) {
      plan.sizes[plan.axes - 1] *= static_cast<uint32_t>(shape[axis]);
    } else {
      plan.sizes[plan.axes++] = static_cast<uint32_t>(shape[axis]);
    }
    for (int k = 0; k < N; ++k) plan.strides[plan.axes - 1][k] = strides[axis][k];
  }
  if (plan.axes == 0) {
    plan.axes = 1;
    plan.sizes[0] = 1;
    for (int k = 0; k < N; ++k) plan.strides[0][k] = 0;
  }
  for (int k = 0; k < N; ++k) plan.advances[k] = plan.strides[plan.axes - 1][k] != 0;
  return plan;
}

// Whether packs of kCount fit: rows are whole packs, and operands that advance start every row on a
// pack.
template <int kCount, int N>
bool rows_take_packs(const Broadcast<N>& plan) {
  if (plan.sizes[plan.axes - 1] % kCount != 0) return false;
  for (int k = 0; k < N; ++k) {
    if (!plan.advances[k]) continue;
    for (int axis = 0; axis + 1 < plan.axes; ++axis) {
      if (plan.strides[axis][k] % kCount != 0) return false;
    }
  }
  return true;
}

#ifdef __CUDACC__

// Computes the offset of each operand's element for output element `index`.
template <int N>
__device__ __forceinline__ void locate(const Broadcast<N>& plan, int64_t index, int64_t (&offsets)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) offsets[k] = 0;
  if (plan.axes == 1) {
#pragma unroll
    for (int k = 0; k < N; ++k) offsets[k] = plan.advances[k] ? index : 0;
    return;
  }
  auto step = [&](int axis, int64_t position) {
#pragma unroll
    for (int k = 0; k < N; ++k) offsets[k] += position * plan.strides[axis][k];
  };
  if (plan.numel <= UINT32_MAX) {
    uint32_t rest = static_cast<uint32_t>(index);
    for (int axis = plan.axes - 1; axis > 0; --axis) {
      const uint32_t next = rest / plan.sizes[axis];
      step(axis, rest - next * plan.sizes[axis]);
      rest = next;
    }
    step(0, rest);
  } else {
    int64_t rest = index;
    for (int axis = plan.axes - 1; axis > 0; --axis) {
      const int64_t next = rest / plan.sizes[axis];
      step(axis, rest - next * plan.sizes[axis]);
      rest = next;
    }
    step(0, rest);
  }
}

// Loads a pack, or repeats one element if the operand stands still.
template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load_operand(const T* p, int64_t offset, bool advances) {
  if (advances) return load_pack<T, kCount>(p + offset);
  Pack<T, kCount> pack;
  const T one = p[offset];
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.value[i] = one;
  return pack;
}

#endif

}  // namespace llamaforge::cuda

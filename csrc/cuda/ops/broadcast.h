// Walking several tensors that broadcast to one shape: csrc/ops/plans/broadcast.h. A thread takes a
// pack of consecutive elements of the last axis: one computation of where it is for up to 8
// elements.
#pragma once

#include "cuda/ops/pack.h"
#include "ops/plans/broadcast.h"

namespace llamaforge::cuda {

template <int N>
using Broadcast = BroadcastPlan<N, uint32_t>;

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
__device__ __forceinline__ void locate(const Broadcast<N>& plan, int64_t index,
                                       int64_t (&offsets)[N]) {
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

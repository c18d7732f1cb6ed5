// slice:        y = the block of x that begins at `starts` and has y's shape.
// slice_write:  the block of y that begins at `starts` and has x's shape is set to x; the rest of y
// stays.
// Moves bits, so any dtype: in units of 16 bytes if places and lengths allow it, else of 4 or 2
// bytes. Reads and writes the block once.
#include <algorithm>

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/indexing.h"

namespace llamaforge::cuda {

namespace {

// Runs that are contiguous in both tensors, and their starts in the whole; in bytes, later in
// units.
struct Runs {
  int64_t run = 1, base = 0;
  int axes = 0;
  int64_t sizes[kMostAxes], strides[kMostAxes];  // outermost first
  int64_t count() const {
    int64_t product = 1;
    for (int axis = 0; axis < axes; ++axis) product *= sizes[axis];
    return product;
  }
  void divide(int64_t unit) {
    run /= unit;
    base /= unit;
    for (int axis = 0; axis < axes; ++axis) strides[axis] /= unit;
  }
};

Runs find_runs(const Tensor& whole, const Tensor& block, const IntList& starts) {
  Runs runs;
  const auto element = static_cast<int64_t>(size_of(whole.dtype));
  int64_t stride = element;
  size_t outer = block.shape.size();
  runs.run = element;
  while (outer > 0) {
    --outer;
    runs.run *= block.shape[outer];
    runs.base += starts[outer] * stride;
    stride *= whole.shape[outer];
    if (block.shape[outer] != whole.shape[outer]) break;
  }
  runs.axes = static_cast<int>(outer);
  for (size_t axis = outer; axis-- > 0;) {
    runs.sizes[axis] = block.shape[axis];
    runs.strides[axis] = stride;
    runs.base += starts[axis] * stride;
    stride *= whole.shape[axis];
  }
  return runs;
}

template <class Unit, bool kIntoWhole>
__global__ void copy_kernel(Unit* block, Unit* whole, const __grid_constant__ Runs runs,
                            int64_t n) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    int64_t rest = i / runs.run, offset = runs.base + i - rest * runs.run;
    for (int axis = runs.axes; axis-- > 0;) {
      offset += rest % runs.sizes[axis] * runs.strides[axis];
      rest /= runs.sizes[axis];
    }
    if constexpr (kIntoWhole) {
      whole[offset] = block[i];
    } else {
      block[i] = whole[offset];
    }
  }
}

template <class Unit, bool kIntoWhole>
void copy(CudaStream& cuda, void* block, void* whole, Runs runs) {
  runs.divide(sizeof(Unit));
  const int64_t n = runs.run * runs.count();
  copy_kernel<Unit, kIntoWhole><<<blocks_for(cuda, n), kThreads, 0, cuda.compute()>>>(
      static_cast<Unit*>(block), static_cast<Unit*>(whole), runs, n);
  check_launch();
}

// Copies in the largest unit that divides every place and length.
template <bool kIntoWhole>
void copy_block(CudaStream& cuda, const Tensor& whole, const Tensor& block, const IntList& starts) {
  const Runs runs = find_runs(whole, block, starts);
  uint64_t all = reinterpret_cast<uintptr_t>(block.raw()) |
                 reinterpret_cast<uintptr_t>(whole.raw()) | static_cast<uint64_t>(runs.run) |
                 static_cast<uint64_t>(runs.base);
  for (int axis = 0; axis < runs.axes; ++axis) all |= static_cast<uint64_t>(runs.strides[axis]);
  if (all % 16 == 0) return copy<uint4, kIntoWhole>(cuda, block.raw(), whole.raw(), runs);
  if (all % 4 == 0) return copy<uint32_t, kIntoWhole>(cuda, block.raw(), whole.raw(), runs);
  copy<uint16_t, kIntoWhole>(cuda, block.raw(), whole.raw(), runs);
}

}  // namespace

void slice(Stream& stream, In x, Out y, IntList starts) {
  check_block(x, y, starts);
  check_axes(x.shape);
  copy_block<false>(on_cuda(stream), x, y, starts);
}

void slice_write(Stream& stream, In x, InOut y, IntList starts) {
  check_block(y, x, starts);
  check_axes(y.shape);
  copy_block<true>(on_cuda(stream), y, x, starts);
}

}  // namespace llamaforge::cuda

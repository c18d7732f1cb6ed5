// slice:        y = the block of x that begins at `starts` and has y's shape.
// slice_write:  the block of y that begins at `starts` and has x's shape becomes x; the rest of y
// stays.
// Both move bits, so they take any dtype. Rows along the axes that the block covers whole are
// copied at once.

#include <cstring>

#include "cpu/kernel.h"
#include "ops/checks/indexing.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// Calls copy(byte offset in the block, byte offset in the whole, bytes) for each contiguous run.
template <class Copy>
void for_each_run(const Tensor& whole, const Tensor& block, const IntList& starts,
                  const Copy& copy) {
  const int64_t element = static_cast<int64_t>(size_of(whole.dtype));
  int64_t run = 1;     // elements that are contiguous in both
  int64_t stride = 1;  // of the axis in front of the run, in `whole`
  size_t outer = block.shape.size();
  while (outer > 0) {
    --outer;
    run *= block.shape[outer];
    stride *= whole.shape[outer];
    if (block.shape[outer] != whole.shape[outer]) break;
  }
  // Axes 0..outer-1 count the runs. Axis `outer` is part of the run; its start moves every run.
  int64_t base = 0;
  int64_t step = 1;
  for (size_t axis = block.shape.size(); axis-- > 0;) {
    base += starts[axis] * step;
    step *= whole.shape[axis];
  }
  int64_t runs = 1;
  for (size_t axis = 0; axis < outer; ++axis) runs *= block.shape[axis];
  parallel_for(runs, run, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t rest = i, offset = base, axis_stride = stride;
      for (size_t axis = outer; axis-- > 0;) {
        offset += rest % block.shape[axis] * axis_stride;
        rest /= block.shape[axis];
        axis_stride *= whole.shape[axis];
      }
      copy(i * run * element, offset * element, static_cast<size_t>(run * element));
    }
  });
}

}  // namespace

void slice(Stream&, In x, Out y, IntList starts) {
  check_block(x, y, starts);
  const char* from = static_cast<const char*>(x.raw());
  char* to = static_cast<char*>(y.raw());
  for_each_run(x, y, starts, [&](int64_t in_block, int64_t in_whole, size_t bytes) {
    std::memcpy(to + in_block, from + in_whole, bytes);
  });
}

void slice_write(Stream&, In x, InOut y, IntList starts) {
  check_block(y, x, starts);
  const char* from = static_cast<const char*>(x.raw());
  char* to = static_cast<char*>(y.raw());
  for_each_run(y, x, starts, [&](int64_t in_block, int64_t in_whole, size_t bytes) {
    std::memcpy(to + in_whole, from + in_block, bytes);
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

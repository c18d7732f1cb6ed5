// gather:       y[.., i, ..] = x[.., index[.., i, ..], ..] along one axis; y has the shape of index
// (PyTorch's gather).
// scatter_add:  dx[.., index[.., i, ..], ..] += dy[.., i, ..], the gradient of gather.
// index i32 may be shorter than x along the other axes. Every index is checked before anything is
// written. Results are deterministic, because lines along the axis are independent of each other
// and one thread walks a line in order.

#include <atomic>

#include "cpu/kernel.h"
#include "ops/checks/indexing.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

void check_values(const Tensor& whole, const Tensor& index, int64_t axis) {
  const int32_t* values = index.data<int32_t>();
  const int64_t size = whole.dim(axis);
  std::atomic<int64_t> first_bad{index.numel()};
  parallel_for(index.numel(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (values[i] >= 0 && values[i] < size) continue;
      int64_t known = first_bad.load();
      while (i < known && !first_bad.compare_exchange_weak(known, i)) {
      }
      return;
    }
  });
  if (first_bad.load() < index.numel()) {
    throw Error("ERR_ARGUMENT", format("index {} at element {} is outside axis {} of size {}",
                                       values[first_bad.load()], first_bad.load(), axis, size));
  }
}

// Calls `visit` for each line along the axis: with the offset of its start and the stride along it
// in `index`, then both in `whole`, and its length.
template <class Visit>
void for_each_line(const Tensor& whole, const Tensor& index, int64_t axis, const Visit& visit) {
  int64_t stride = 1;
  for (int64_t other = axis + 1; other < index.rank(); ++other) stride *= index.dim(other);
  int64_t whole_stride = 1;
  for (int64_t other = axis + 1; other < whole.rank(); ++other) whole_stride *= whole.dim(other);
  const int64_t length = index.dim(axis);
  parallel_for(index.numel() / length, length, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      int64_t rest = line, in_whole = 0, step = 1;
      for (int64_t other = whole.rank() - 1; other >= 0; --other) {
        if (other != axis) {
          in_whole += rest % index.dim(other) * step;
          rest /= index.dim(other);
        }
        step *= whole.dim(other);
      }
      visit(line / stride * stride * length + line % stride, stride, in_whole, whole_stride,
            length);
    }
  });
}

template <class Bits>
void gather_bits(const In& x, const In& index, Out& y, int64_t axis) {
  const Bits* from = static_cast<const Bits*>(x.raw());
  const int32_t* at = index.data<int32_t>();
  Bits* to = static_cast<Bits*>(y.raw());
  for_each_line(x, index, axis,
                [&](int64_t i, int64_t stride, int64_t start, int64_t x_stride, int64_t length) {
                  for (int64_t k = 0; k < length; ++k, i += stride)
                    to[i] = from[start + at[i] * x_stride];
                });
}

template <class DY, class DX>
void scatter(const In& dy, const In& index, InOut& dx, int64_t axis) {
  const DY* from = dy.data<DY>();
  const int32_t* at = index.data<int32_t>();
  DX* to = dx.data<DX>();
  for_each_line(dx, index, axis,
                [&](int64_t i, int64_t stride, int64_t start, int64_t dx_stride, int64_t length) {
                  for (int64_t k = 0; k < length; ++k, i += stride) {
                    DX& sum = to[start + at[i] * dx_stride];
                    sum = from_float<DX>(to_float(sum) + to_float(from[i]));
                  }
                });
}

}  // namespace

void gather(Stream&, In x, In index, Out y, int64_t axis) {
  check_gather(x, index, y, axis);
  check_values(x, index, axis);
  size_of(x.dtype) == 2 ? gather_bits<uint16_t>(x, index, y, axis)
                        : gather_bits<uint32_t>(x, index, y, axis);
}

void scatter_add(Stream&, In dy, In index, InOut dx, int64_t axis) {
  check_scatter_add(dy, index, dx, axis);
  check_values(dx, index, axis);
  with_float("dy", dy, [&]<class DY>() {
    dx.dtype == DType::f32 ? scatter<DY, float>(dy, index, dx, axis)
                           : scatter<DY, bfloat16>(dy, index, dx, axis);
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// gather:       y[.., i, ..] = x[.., index[.., i, ..], ..] along one axis; y has the shape of index
// (PyTorch's gather). scatter_add:  dx[.., index[.., i, ..], ..] += dy[.., i, ..]: its gradient.
// index i32 may be shorter than x along the other axes. A first kernel checks every index and
// reports one outside of x; the second then reads nothing of x: gather's result is NaN, and dx
// stays as it was. Deterministic: lines along the axis are independent. With many lines, a thread
// walks each line. With few, a warp walks each line, 32 elements at a time, and adds those with the
// same target in their order before it touches the target.
#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/indexing.h"

namespace llamaforge::cuda {

namespace {

constexpr int64_t kLinesForThreads = 4096;

// Lines along the axis: where each starts in the index and in the whole, and the strides along it.
struct Lines {
  int axes = 0;  // all axes but the indexed one
  int64_t sizes[kMostAxes], index_strides[kMostAxes], whole_strides[kMostAxes];
  int64_t length, size;  // of the axis, in the index and in the whole
  int64_t index_stride = 1, whole_stride = 1;
  int64_t count = 1;
  __device__ void locate(int64_t line, int64_t& in_index, int64_t& in_whole) const {
    in_index = in_whole = 0;
    for (int axis = axes; axis-- > 0;) {
      const int64_t position = line % sizes[axis];
      line /= sizes[axis];
      in_index += position * index_strides[axis];
      in_whole += position * whole_strides[axis];
    }
  }
};

Lines find_lines(const Tensor& whole, const Tensor& index, int64_t axis) {
  check_axes(whole.shape);
  Lines lines;
  lines.length = index.dim(axis);
  lines.size = whole.dim(axis);
  lines.axes = static_cast<int>(whole.rank()) - 1;
  int64_t index_step = 1, whole_step = 1;
  int at = lines.axes;
  for (int64_t other = whole.rank(); other-- > 0;) {
    if (other == axis) {
      lines.index_stride = index_step;
      lines.whole_stride = whole_step;
    } else {
      --at;
      lines.sizes[at] = index.dim(other);
      lines.index_strides[at] = index_step;
      lines.whole_strides[at] = whole_step;
      lines.count *= index.dim(other);
    }
    index_step *= index.dim(other);
    whole_step *= whole.dim(other);
  }
  return lines;
}

__global__ void check_kernel(const int32_t* index, int64_t n, int64_t size, int64_t axis,
                             FaultSite site) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int32_t value = index[i];
    if (value < 0 || value >= size) {
      report(site, value, static_cast<double>(i), static_cast<double>(axis),
             static_cast<double>(size));
    }
  }
}

FaultSite check_values(CudaStream& cuda, const Tensor& index, const Lines& lines, int64_t axis) {
  const FaultSite site =
      cuda.fault_site("ERR_ARGUMENT", "index {} at element {} is outside axis {} of size {}");
  check_kernel<<<blocks_for(cuda, index.numel()), kThreads, 0, cuda.compute()>>>(
      index.data<int32_t>(), index.numel(), lines.size, axis, site);
  check_launch();
  return site;
}

// Neighbouring threads take neighbouring lines, so that their accesses are neighbours too if the
// axis is not the last one.
template <class Bits>
__global__ void gather_kernel(const Bits* x, const int32_t* index, Bits* y,
                              const __grid_constant__ Lines lines, FaultSite site) {
  const bool faulty = site.record->site != 0;
  const int64_t n = lines.count * lines.length;
  const bool along_axis = lines.index_stride == 1;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t line = along_axis ? i / lines.length : i % lines.count;
    const int64_t k = along_axis ? i % lines.length : i / lines.count;
    int64_t in_index, in_whole;
    lines.locate(line, in_index, in_whole);
    const int64_t at = in_index + k * lines.index_stride;
    y[at] = faulty ? static_cast<Bits>(~Bits{0}) : x[in_whole + index[at] * lines.whole_stride];
  }
}

template <class DY, class DX>
__global__ void scatter_threads_kernel(const DY* dy, const int32_t* index, DX* dx,
                                       const __grid_constant__ Lines lines, FaultSite site) {
  if (site.record->site != 0) return;
  for (int64_t line = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; line < lines.count;
       line += int64_t{gridDim.x} * blockDim.x) {
    int64_t in_index, in_whole;
    lines.locate(line, in_index, in_whole);
    for (int64_t k = 0; k < lines.length; ++k, in_index += lines.index_stride) {
      DX& sum = dx[in_whole + index[in_index] * lines.whole_stride];
      sum = narrow<DX>(widen(sum) + widen(dy[in_index]));
    }
  }
}

template <class DY, class DX>
__global__ void scatter_warps_kernel(const DY* dy, const int32_t* index, DX* dx,
                                     const __grid_constant__ Lines lines, FaultSite site) {
  if (site.record->site != 0) return;
  const int lane = threadIdx.x % 32;
  for (int64_t line = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; line < lines.count;
       line += int64_t{gridDim.x} * blockDim.x / 32) {
    int64_t in_index, in_whole;
    lines.locate(line, in_index, in_whole);
    for (int64_t first = 0; first < lines.length; first += 32) {
      const bool present = first + lane < lines.length;
      const int64_t at = in_index + (first + lane) * lines.index_stride;
      const int32_t target = present ? index[at] : -1 - lane;
      const float value = present ? widen(dy[at]) : 0.0f;
      float sum = 0.0f;
#pragma unroll
      for (int other = 0; other < 32; ++other) {
        const int32_t their_target = __shfl_sync(0xffffffffu, target, other);
        const float their_value = __shfl_sync(0xffffffffu, value, other);
        if (their_target == target) sum += their_value;
      }
      const unsigned same = __match_any_sync(0xffffffffu, target);
      if (present && __ffs(same) - 1 == lane) {
        volatile DX* place = dx + in_whole + target * lines.whole_stride;
        DX before;
        if constexpr (sizeof(DX) == 2) {
          before.bits = place->bits;
          place->bits = narrow<DX>(widen(before) + sum).bits;
        } else {
          before = *place;
          *place = before + sum;
        }
      }
      __syncwarp();  // also orders these writes before the next 32 reads
    }
  }
}

template <class DY, class DX>
void scatter(CudaStream& cuda, const Tensor& dy, const Tensor& index, const Tensor& dx,
             const Lines& lines, const FaultSite& site) {
  if (lines.count >= kLinesForThreads) {
    scatter_threads_kernel<<<blocks_for(cuda, lines.count), kThreads, 0, cuda.compute()>>>(
        dy.data<DY>(), index.data<int32_t>(), dx.data<DX>(), lines, site);
  } else {
    scatter_warps_kernel<<<blocks_for(cuda, lines.count * 32), kThreads, 0, cuda.compute()>>>(
        dy.data<DY>(), index.data<int32_t>(), dx.data<DX>(), lines, site);
  }
  check_launch();
}

template <class Bits>
void gather_bits(CudaStream& cuda, const Tensor& x, const Tensor& index, const Tensor& y,
                 const Lines& lines, const FaultSite& site) {
  gather_kernel<<<blocks_for(cuda, index.numel()), kThreads, 0, cuda.compute()>>>(
      static_cast<const Bits*>(x.raw()), index.data<int32_t>(), static_cast<Bits*>(y.raw()), lines,
      site);
  check_launch();
}

}  // namespace

void gather(Stream& stream, In x, In index, Out y, int64_t axis) {
  check_gather(x, index, y, axis);
  const Lines lines = find_lines(x, index, axis);
  CudaStream& cuda = on_cuda(stream);
  const FaultSite site = check_values(cuda, index, lines, axis);
  if (size_of(x.dtype) == 2) return gather_bits<uint16_t>(cuda, x, index, y, lines, site);
  gather_bits<uint32_t>(cuda, x, index, y, lines, site);
}

void scatter_add(Stream& stream, In dy, In index, InOut dx, int64_t axis) {
  check_scatter_add(dy, index, dx, axis);
  const Lines lines = find_lines(dx, index, axis);
  CudaStream& cuda = on_cuda(stream);
  const FaultSite site = check_values(cuda, index, lines, axis);
  with_float("dy", dy, [&]<class DY>() {
    if (dx.dtype == DType::f32) return scatter<DY, float>(cuda, dy, index, dx, lines, site);
    scatter<DY, bfloat16>(cuda, dy, index, dx, lines, site);
  });
}

}  // namespace llamaforge::cuda

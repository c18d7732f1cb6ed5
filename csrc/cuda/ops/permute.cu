// y = x with its axes in another order: axis i of y is axis permutation[i] of x. Moves bits, so any
// dtype. Reads and writes each tensor once. If the last axis stays, rows move in 16-byte accesses.
// If it changes, squares go through shared memory, so that whole cache lines are touched on both
// sides, in 16-byte accesses if the matrices allow them.
#include <vector>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/indexing.h"

namespace llamaforge::cuda {

namespace {

constexpr int kTile = 32;

struct Axis {
  int64_t size;
  int64_t from;  // stride in x
  int64_t to;    // stride in y
};

struct Axes {
  int count = 0;
  Axis axis[kMostAxes];  // in the order of y
  int64_t total() const {
    int64_t product = 1;
    for (int i = 0; i < count; ++i) product *= axis[i].size;
    return product;
  }
  // Index: use 32 bits if they suffice, because division is then much cheaper.
  template <class Index> __device__ void locate(Index index, int64_t& from, int64_t& to) const {
    from = to = 0;
    for (int i = count; i-- > 0;) {
      const Index size = static_cast<Index>(axis[i].size), next = index / size;
      const int64_t position = index - next * size;
      index = next;
      from += position * axis[i].from;
      to += position * axis[i].to;
    }
  }
};

// The axes in the order of y, without those of size 1, and with axes joined that stay neighbours.
std::vector<Axis> plan_permutation(const Shape& x, const IntList& permutation) {
  std::vector<int64_t> strides(x.size());
  int64_t step = 1;
  for (size_t axis = x.size(); axis-- > 0;) {
    strides[axis] = step;
    step *= x[axis];
  }
  std::vector<Axis> axes;
  for (int64_t source : permutation) {
    const int64_t size = x[source];
    if (size == 1) continue;
    if (!axes.empty() && axes.back().from == size * strides[source]) {
      axes.back() = {axes.back().size * size, strides[source], 0};
    } else {
      axes.push_back({size, strides[source], 0});
    }
  }
  step = 1;
  for (size_t axis = axes.size(); axis-- > 0;) {
    axes[axis].to = step;
    step *= axes[axis].size;
  }
  return axes;
}

Axes to_device(const std::vector<Axis>& axes) {
  Axes result;
  for (const Axis& axis : axes) result.axis[result.count++] = axis;
  return result;
}

// Moves rows of `length` elements, kCount at a time.
template <int kCount, class Index, class Bits>
__global__ void move_rows_kernel(const Bits* x, Bits* y, const __grid_constant__ Axes axes, Index packs, Index packs_per_row) {
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += static_cast<Index>(gridDim.x) * kThreads) {
    const Index row = i / packs_per_row;
    int64_t from, to;
    axes.locate(row, from, to);
    store_pack(y + int64_t{i} * kCount, load_pack<Bits, kCount>(x + from + int64_t{i - row * packs_per_row} * kCount));
  }
}

// Transposes matrices whose sides are whole packs: squares go through shared memory, 16 bytes at a
// time on both sides. A word there is one 4-byte number, or two 2-byte numbers from two columns.
// (Transposing squares in registers reaches half the rate, because it writes partial lines.)
template <class Bits>
__global__ void __launch_bounds__(256) transpose_packs_kernel(const Bits* x, Bits* y, const __grid_constant__ Axes outer,
                                                              Axis row, Axis column, int64_t matrices) {
  constexpr int kPerWord = 4 / sizeof(Bits), kPack = 4 * kPerWord, kSide = 8 * kPack;
  __shared__ uint32_t tile[kSide][kSide / kPerWord + 1];
  const int pack = threadIdx.x % 8, line = threadIdx.x / 8;
  const int64_t down = (row.size + kSide - 1) / kSide, across = (column.size + kSide - 1) / kSide;
  for (int64_t task = blockIdx.x; task < matrices * down * across; task += gridDim.x) {
    int64_t from, to;
    outer.locate(task / across / down, from, to);
    const int64_t r = task / across % down * kSide, c = task % across * kSide;
    if (r + pack * kPack < row.size && c + line * kPerWord < column.size) {
      const Bits* at = x + from + r + pack * kPack + (c + line * kPerWord) * column.from;
      const uint4 first = *reinterpret_cast<const uint4*>(at);
      const uint32_t a[4] = {first.x, first.y, first.z, first.w};
      if constexpr (kPerWord == 2) {
        const uint4 second = *reinterpret_cast<const uint4*>(at + column.from);
        const uint32_t b[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          tile[pack * kPack + 2 * w][line] = __byte_perm(a[w], b[w], 0x5410);      // the lower halves
          tile[pack * kPack + 2 * w + 1][line] = __byte_perm(a[w], b[w], 0x7632);  // the upper halves
        }
      } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) tile[pack * kPack + w][line] = a[w];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = line; i < kSide; i += 32) {
      if (r + i < row.size && c + pack * kPack < column.size) {
        const uint32_t* words = tile[i] + 4 * pack;
        *reinterpret_cast<uint4*>(y + to + (r + i) * row.to + c + pack * kPack) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    __syncthreads();
  }
}

// `row`: contiguous in x, `column`: contiguous in y; `outer` counts the matrices to transpose.
template <class Bits>
__global__ void transpose_kernel(const Bits* x, Bits* y, const __grid_constant__ Axes outer, Axis row, Axis column,
                                 int64_t matrices) {
  __shared__ Bits tile[kTile][kTile + 4 / sizeof(Bits)];  // 33 words a row: no two elements of a column share a bank
  const int64_t down = (row.size + kTile - 1) / kTile, across = (column.size + kTile - 1) / kTile;
  for (int64_t task = blockIdx.x; task < matrices * down * across; task += gridDim.x) {
    int64_t from, to;
    outer.locate(task / across / down, from, to);
    const int64_t r = task / across % down * kTile, c = task % across * kTile;
    for (int j = threadIdx.y; j < kTile; j += blockDim.y) {
      if (r + threadIdx.x < row.size && c + j < column.size) {
        tile[j][threadIdx.x] = x[from + (r + threadIdx.x) + (c + j) * column.from];
      }
    }
    __syncthreads();
    for (int j = threadIdx.y; j < kTile; j += blockDim.y) {
      if (c + threadIdx.x < column.size && r + j < row.size) {
        y[to + (r + j) * row.to + c + threadIdx.x] = tile[threadIdx.x][j];
      }
    }
    __syncthreads();
  }
}

template <class Bits> void move_rows(CudaStream& cuda, const Bits* x, Bits* y, std::vector<Axis> axes) {
  constexpr int kCount = 16 / sizeof(Bits);
  const int64_t length = axes.empty() ? 1 : axes.back().size;
  if (!axes.empty()) axes.pop_back();
  const Axes outer = to_device(axes);
  const int64_t n = outer.total() * length;
  // If the length is whole packs, every row starts on a pack, because the strides are multiples of
  // the length.
  auto launch = [&]<int kPer, class Index>() {
    move_rows_kernel<kPer, Index><<<blocks_for(cuda, n / kPer), kThreads, 0, cuda.compute()>>>(
        x, y, outer, static_cast<Index>(n / kPer), static_cast<Index>(length / kPer));
  };
  const bool packs = length % kCount == 0 && aligned16({x, y});
  if (n < INT32_MAX) {
    packs ? launch.template operator()<kCount, uint32_t>() : launch.template operator()<1, uint32_t>();
  } else {
    packs ? launch.template operator()<kCount, int64_t>() : launch.template operator()<1, int64_t>();
  }
}

template <class Bits> void transpose(CudaStream& cuda, const Bits* x, Bits* y, std::vector<Axis> axes) {
  const Axis column = axes.back();
  axes.pop_back();
  size_t contiguous = 0;
  while (axes[contiguous].from != 1) ++contiguous;
  const Axis row = axes[contiguous];
  axes.erase(axes.begin() + static_cast<std::ptrdiff_t>(contiguous));
  const Axes outer = to_device(axes);
  const int64_t matrices = outer.total();
  constexpr int64_t kPack = 16 / sizeof(Bits), kSide = 8 * kPack;
  // The strides are products of sizes, and the innermost sizes are whole packs.
  if (row.size % kPack == 0 && column.size % kPack == 0 && aligned16({x, y})) {
    const int64_t blocks = matrices * ((row.size + kSide - 1) / kSide) * ((column.size + kSide - 1) / kSide);
    transpose_packs_kernel<<<blocks_for(cuda, blocks, 1), 256, 0, cuda.compute()>>>(x, y, outer, row, column, matrices);
    return;
  }
  const int64_t tiles = matrices * ((row.size + kTile - 1) / kTile) * ((column.size + kTile - 1) / kTile);
  transpose_kernel<<<blocks_for(cuda, tiles, 1), dim3(kTile, 8), 0, cuda.compute()>>>(x, y, outer, row, column, matrices);
}

template <class Bits> void move(CudaStream& cuda, const Tensor& x, const Tensor& y, const std::vector<Axis>& axes) {
  const auto* from = static_cast<const Bits*>(x.raw());
  auto* to = static_cast<Bits*>(y.raw());
  axes.empty() || axes.back().from == 1 ? move_rows(cuda, from, to, axes) : transpose(cuda, from, to, axes);
  check_launch();
}

}  // namespace

void permute(Stream& stream, In x, Out y, IntList permutation) {
  check_permute(x, y, permutation);
  check_axes(x.shape);
  const std::vector<Axis> axes = plan_permutation(x.shape, permutation);
  CudaStream& cuda = on_cuda(stream);
  size_of(x.dtype) == 2 ? move<uint16_t>(cuda, x, y, axes) : move<uint32_t>(cuda, x, y, axes);
}

}  // namespace llamaforge::cuda

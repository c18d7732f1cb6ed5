// y = x with its axes in another order: axis i of y is axis permutation[i] of x. The kernels move
// bits, so they take any dtype. They read and write each tensor once. If the last axis stays, rows
// move in 16-byte accesses. If it changes, squares go through shared memory, so that both sides are
// touched in whole lines, in 16-byte accesses where the matrices allow them.
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/indexing.h"
#include "ops/plans/permute.h"

namespace llamaforge::cuda {

namespace {

constexpr int kTile = 32;

// Rows of `length` elements, kCount at a time.
template <int kCount, class Index, class Bits>
__global__ void move_rows_kernel(const Bits* x, Bits* y, const __grid_constant__ PermutedAxes axes,
                                 Index packs, Index packs_per_row) {
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < packs;
       i += static_cast<Index>(gridDim.x) * kThreads) {
    const Index row = i / packs_per_row;
    int64_t from, to;
    locate(axes, row, from, to);
    store_pack(y + int64_t{i} * kCount,
               load_pack<Bits, kCount>(x + from + int64_t{i - row * packs_per_row} * kCount));
  }
}

// Transposes matrices whose sides are whole packs: squares go through shared memory, 16 bytes at a
// time on both sides. A word there is one 4-byte number, or two 2-byte numbers from two columns.
// (Transposing squares in registers reaches half the rate, because it writes partial lines.)
template <class Bits>
__global__ void __launch_bounds__(256)
    transpose_packs_kernel(const Bits* x, Bits* y, const __grid_constant__ PermutedAxes outer,
                           PermutedAxis row, PermutedAxis column, int64_t matrices) {
  constexpr int kPerWord = 4 / sizeof(Bits), kPack = 4 * kPerWord, kSide = 8 * kPack;
  __shared__ uint32_t tile[kSide][kSide / kPerWord + 1];
  const int pack = threadIdx.x % 8, line = threadIdx.x / 8;
  const int64_t down = (row.size + kSide - 1) / kSide, across = (column.size + kSide - 1) / kSide;
  for (int64_t task = blockIdx.x; task < matrices * down * across; task += gridDim.x) {
    int64_t from, to;
    locate(outer, task / across / down, from, to);
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
          tile[pack * kPack + 2 * w][line] = __byte_perm(a[w], b[w], 0x5410);      // lower halves
          tile[pack * kPack + 2 * w + 1][line] = __byte_perm(a[w], b[w], 0x7632);  // upper halves
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

// Transposes all other matrices.
template <class Bits>
__global__ void transpose_kernel(const Bits* x, Bits* y, const __grid_constant__ PermutedAxes outer,
                                 PermutedAxis row, PermutedAxis column, int64_t matrices) {
  // 33 words a row, so that a column has no bank twice
  __shared__ Bits tile[kTile][kTile + 4 / sizeof(Bits)];
  const int64_t down = (row.size + kTile - 1) / kTile, across = (column.size + kTile - 1) / kTile;
  for (int64_t task = blockIdx.x; task < matrices * down * across; task += gridDim.x) {
    int64_t from, to;
    locate(outer, task / across / down, from, to);
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

template <class Bits>
void move_rows(CudaStream& cuda, const Bits* x, Bits* y, PermutedAxes outer) {
  constexpr int kCount = 16 / sizeof(Bits);
  const int64_t length = take_row(outer);
  const int64_t n = count_of(outer) * length;
  // Every row starts on a pack if the row length is whole packs, because strides are multiples of
  // the length.
  auto launch = [&]<int kPer, class Index>() {
    move_rows_kernel<kPer, Index><<<blocks_for(cuda, n / kPer), kThreads, 0, cuda.compute()>>>(
        x, y, outer, static_cast<Index>(n / kPer), static_cast<Index>(length / kPer));
  };
  const bool packs = length % kCount == 0 && aligned16({x, y});
  if (n < INT32_MAX) {
    packs ? launch.template operator()<kCount, uint32_t>()
          : launch.template operator()<1, uint32_t>();
  } else {
    packs ? launch.template operator()<kCount, int64_t>()
          : launch.template operator()<1, int64_t>();
  }
}

template <class Bits>
void transpose(CudaStream& cuda, const Bits* x, Bits* y, const PermutedAxes& axes) {
  const auto [outer, row, column] = split_transposition(axes);
  const int64_t matrices = count_of(outer);
  constexpr int64_t kPack = 16 / sizeof(Bits), kSide = 8 * kPack;
  // The strides are products of sizes, and the innermost sizes are whole packs.
  if (row.size % kPack == 0 && column.size % kPack == 0 && aligned16({x, y})) {
    const int64_t blocks =
        matrices * ((row.size + kSide - 1) / kSide) * ((column.size + kSide - 1) / kSide);
    transpose_packs_kernel<<<blocks_for(cuda, blocks, 1), 256, 0, cuda.compute()>>>(
        x, y, outer, row, column, matrices);
    return;
  }
  const int64_t tiles =
      matrices * ((row.size + kTile - 1) / kTile) * ((column.size + kTile - 1) / kTile);
  transpose_kernel<<<blocks_for(cuda, tiles, 1), dim3(kTile, 8), 0, cuda.compute()>>>(
      x, y, outer, row, column, matrices);
}

template <class Bits>
void move(CudaStream& cuda, const Tensor& x, const Tensor& y, const PermutedAxes& axes) {
  const auto* from = static_cast<const Bits*>(x.raw());
  auto* to = static_cast<Bits*>(y.raw());
  moves_rows(axes) ? move_rows(cuda, from, to, axes) : transpose(cuda, from, to, axes);
  check_launch();
}

}  // namespace

void permute(Stream& stream, In x, Out y, IntList permutation) {
  check_permute(x, y, permutation);
  const PermutedAxes axes = plan_permutation(x.shape, permutation);
  CudaStream& cuda = on_cuda(stream);
  size_of(x.dtype) == 2 ? move<uint16_t>(cuda, x, y, axes) : move<uint32_t>(cuda, x, y, axes);
}

}  // namespace llamaforge::cuda

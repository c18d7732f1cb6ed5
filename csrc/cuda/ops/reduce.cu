// Reduction over any axes: sum, mean, max, min. In y the reduced axes are left out, or of size 1.
// Reads x once.
//
// The last axis of the plan (csrc/ops/plans/reduce.h) decides:
//   reduced: numbers that lie together become one number each, by a warp (short) or a block (long)
//            in 16-byte accesses;
//   kept:    rows are added to each other, 32 packs of columns by 8 rows of threads.
// Long reductions are cut into pieces whose results are combined in their order. Cuts and orders
// depend on the shape alone, so the bits of a result are the same on every GPU. Numbers of a pack
// are combined in f32, packs in f64. i32 sums are exact in 64 bits and wrap around at the end; the
// mean of i32 is refused. max and min are NaN if any number is.
#include <limits>
#include <type_traits>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/reduce.h"
#include "ops/plans/reduce.h"

namespace llamaforge::cuda {

namespace {

constexpr int64_t kWarpLength = 4096;  // numbers that a warp reduces alone
constexpr int64_t kPiece = 32768;      // numbers that a block reduces
// Rows that are added to each other are cut into pieces of at most this many rows, and into shorter
// ones if there would be fewer than kBlocks pieces. 512 blocks run at a time on an H100 (four per
// multiprocessor), so no last blocks keep the others waiting.
constexpr int64_t kRowsPerPiece = 512;
constexpr int64_t kBlocks = 512;
constexpr int64_t kRowsAtOnce = 32;  // rows per step of a block

// ---- the operations

struct SumOf {
  template <class T>
  __device__ static T initial() {
    return T(0);
  }
  template <class T>
  __device__ static T combine(T a, T b) {
    return a + b;
  }
};
struct MaxOf {
  template <class T>
  __device__ static T initial() {
    if constexpr (std::is_integral_v<T>) return INT64_MIN;
    return static_cast<T>(-__int_as_float(0x7f800000));
  }
  template <class T>
  __device__ static T combine(T a, T b) {
    return a > b || a != a ? a : b;
  }
};
struct MinOf {
  template <class T>
  __device__ static T initial() {
    if constexpr (std::is_integral_v<T>) return INT64_MAX;
    return static_cast<T>(__int_as_float(0x7f800000));
  }
  template <class T>
  __device__ static T combine(T a, T b) {
    return a < b || a != a ? a : b;
  }
};

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, int32_t>, int64_t, double>;

__device__ int64_t numeric(int32_t x) { return x; }
template <class T>
__device__ float numeric(T x) {
  return widen(x);
}

template <class Op>
struct Combine {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return Op::combine(a, b);
  }
};

// ---- kernels

template <class Y>
struct Output {
  Y* data;
  double factor;  // 1/count for mean
  template <class W>
  __device__ void write(int64_t i, W value) const {
    if constexpr (std::is_same_v<Y, int32_t>) {
      data[i] = static_cast<int32_t>(static_cast<uint64_t>(value));
    } else {
      data[i] = narrow<Y>(static_cast<float>(value * factor));
    }
  }
};
// Partial results go into scratch memory unchanged.
template <class W>
struct Partial {
  W* data;
  __device__ void write(int64_t i, W value) const { data[i] = value; }
};

// Reduces numbers from..to of output `output` with `threads` threads; this thread's number is
// `thread`.
template <class Op, int kCount, class T>
__device__ Wide<T> reduce_range(const T* x, const ReductionPlan& plan, int64_t output, int64_t from,
                                int64_t to, int thread, int threads) {
  using W = Wide<T>;
  const T* start = x + offset_of(plan.kept, output);
  W result = Op::template initial<W>();
  const auto load = [&](int64_t i) {
    if (plan.reduced.axes == 0) return load_pack<T, kCount>(start + i);
    const int64_t row = i / plan.length;
    return load_pack<T, kCount>(start + offset_of(plan.reduced, row) + (i - row * plan.length));
  };
  const auto add = [&](const Pack<T, kCount>& pack) {
    auto sum = numeric(pack.value[0]);
#pragma unroll
    for (int k = 1; k < kCount; ++k) sum = Op::combine(sum, numeric(pack.value[k]));
    result = Op::combine(result, static_cast<W>(sum));
  };
  constexpr int kAtOnce = 4;  // packs in flight
  const int64_t step = int64_t{threads} * kCount;
  int64_t i = from + int64_t{thread} * kCount;
  for (; i + (kAtOnce - 1) * step < to; i += kAtOnce * step) {
    Pack<T, kCount> pack[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) pack[j] = load(i + j * step);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) add(pack[j]);
  }
  for (; i < to; i += step) add(load(i));
  return result;
}

// Reduces each output with one warp.
template <class Op, int kCount, class T, class Out>
__global__ void reduce_short_kernel(const T* x, Out y, const __grid_constant__ ReductionPlan plan,
                                    int64_t outputs, int64_t n) {
  const int lane = threadIdx.x % 32;
  for (int64_t output = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; output < outputs;
       output += int64_t{gridDim.x} * blockDim.x / 32) {
    const auto result =
        warp_reduce(reduce_range<Op, kCount>(x, plan, output, 0, n, lane, 32), Combine<Op>{});
    if (lane == 0) y.write(output, result);
  }
}

// Reduces each piece of each output with one block: y (outputs, pieces).
template <class Op, int kCount, class T, class Out>
__global__ void reduce_long_kernel(const T* x, Out y, const __grid_constant__ ReductionPlan plan,
                                   int64_t outputs, int64_t n, int64_t pieces,
                                   int64_t piece_length) {
  using W = Wide<T>;
  let_next_start();
  for (int64_t task = blockIdx.x; task < outputs * pieces; task += gridDim.x) {
    const int64_t output = task / pieces, from = task % pieces * piece_length;
    const W part = reduce_range<Op, kCount>(x, plan, output, from, min(n, from + piece_length),
                                            threadIdx.x, blockDim.x);
    const W result = block_reduce(part, Op::template initial<W>(), Combine<Op>{});
    if (threadIdx.x == 0) y.write(task, result);
  }
}

// 32 packs of columns x 8 rows of threads. Each (output, piece of its rows, columns) has a block: y
// (outputs, pieces, length). Four rows at a time are in flight and are combined before they join
// the sum. kEven: rows are evenly spaced.
template <class Op, int kCount, bool kEven, class T, class Out>
__global__ void __launch_bounds__(256, kEven ? 4 : 3)
    reduce_rows_kernel(const T* x, Out y, const __grid_constant__ ReductionPlan plan,
                       int64_t outputs, int64_t rows, int64_t pieces, int64_t rows_per_piece) {
  using W = Wide<T>;
  constexpr int kRows = 8, kColumns = 32 * kCount, kAtOnce = kRowsAtOnce / kRows;
  __shared__ W part[kRows][kColumns];
  let_next_start();
  const int64_t tiles = (plan.length + kColumns - 1) / kColumns;
  for (int64_t task = blockIdx.x; task < outputs * pieces * tiles; task += gridDim.x) {
    const int64_t first = task % tiles * kColumns, piece = task / tiles % pieces,
                  output = task / tiles / pieces;
    const int64_t column = first + threadIdx.x * kCount;
    W result[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) result[k] = Op::template initial<W>();
    if (column < plan.length) {
      const T* start = x + offset_of(plan.kept, output) + column;
      const auto load = [&](int64_t row) {
        return load_pack<T, kCount>(
            start + (kEven ? row * plan.reduced.strides[0] : offset_of(plan.reduced, row)));
      };
      const int64_t last = min(rows, (piece + 1) * rows_per_piece);
      int64_t row = piece * rows_per_piece + threadIdx.y;
      for (; row + (kAtOnce - 1) * kRows < last; row += kAtOnce * kRows) {
        Pack<T, kCount> pack[kAtOnce];
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) pack[r] = load(row + r * kRows);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          auto sum = numeric(pack[0].value[k]);
#pragma unroll
          for (int r = 1; r < kAtOnce; ++r) sum = Op::combine(sum, numeric(pack[r].value[k]));
          result[k] = Op::combine(result[k], static_cast<W>(sum));
        }
      }
      for (; row < last; row += kRows) {
        const auto pack = load(row);
#pragma unroll
        for (int k = 0; k < kCount; ++k)
          result[k] = Op::combine(result[k], static_cast<W>(numeric(pack.value[k])));
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) part[threadIdx.y][threadIdx.x * kCount + k] = result[k];
    __syncthreads();
    for (int c = threadIdx.y * 32 + threadIdx.x; c < kColumns && first + c < plan.length;
         c += 32 * kRows) {
      W total = part[0][c];
#pragma unroll
      for (int k = 1; k < kRows; ++k) total = Op::combine(total, part[k][c]);
      y.write((output * pieces + piece) * plan.length + first + c, total);
    }
    __syncthreads();
  }
}

// y (outputs) from partial (outputs, pieces), with one block per output, in a fixed order. Launched
// early, as is combine_kernel.
template <class Op, class W, class Out>
__global__ void combine_pieces_kernel(const W* partial, Out y, int64_t pieces) {
  wait_for_previous();
  W result = Op::template initial<W>();
  for (int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    result = Op::combine(result, partial[blockIdx.x * pieces + p]);
  }
  result = block_reduce(result, Op::template initial<W>(), Combine<Op>{});
  if (threadIdx.x == 0) y.write(blockIdx.x, result);
}

// y (outputs, length) from partial (outputs, pieces, length): 32 numbers x 8 rows of threads, each
// of which takes every eighth piece.
template <class Op, class W, class Out>
__global__ void __launch_bounds__(256)
    combine_kernel(const W* partial, Out y, int64_t count, int64_t pieces, int64_t length) {
  __shared__ W part[8][32];
  wait_for_previous();
  for (int64_t first = int64_t{blockIdx.x} * 32; first < count; first += int64_t{gridDim.x} * 32) {
    const int64_t i = first + threadIdx.x;
    W result = Op::template initial<W>();
    if (i < count) {
      const W* column = partial + i / length * pieces * length + i % length;
#pragma unroll 8
      for (int64_t p = threadIdx.y; p < pieces; p += 8)
        result = Op::combine(result, column[p * length]);
    }
    part[threadIdx.y][threadIdx.x] = result;
    __syncthreads();
    if (threadIdx.y == 0 && i < count) {
#pragma unroll
      for (int k = 1; k < 8; ++k) result = Op::combine(result, part[k][threadIdx.x]);
      y.write(i, result);
    }
    __syncthreads();
  }
}

// ---- launchers

template <class Op, class T, class Y>
struct Launcher {
  using W = Wide<T>;
  CudaStream& cuda;
  const T* x;
  Output<Y> y;
  const ReductionPlan& plan;
  int64_t outputs = count_of(plan.kept), rows = count_of(plan.reduced);

  // Calls run(destination): with y if there is one piece, else with scratch memory whose pieces are
  // then combined.
  template <class Run>
  void in_pieces(int64_t pieces, int64_t length, const Run& run) {
    if (pieces == 1) return run(y);
    const int64_t count = outputs * length;
    const Scratch scratch(cuda, static_cast<size_t>(count * pieces) * sizeof(W));
    run(Partial<W>{scratch.as<W>()});
    if (length == 1 && pieces >= 32 && outputs <= INT32_MAX) {
      launch_early(cuda, combine_pieces_kernel<Op, W, Output<Y>>, static_cast<unsigned>(outputs),
                   kThreads, 0, scratch.as<W>(), y, pieces);
      return;
    }
    launch_early(cuda, combine_kernel<Op, W, Output<Y>>, blocks_for(cuda, count, 32), dim3(32, 8),
                 0, scratch.as<W>(), y, count, pieces, length);
  }

  template <int kCount>
  void last() {
    const int64_t n = rows * plan.length;
    if (n <= kWarpLength) {
      reduce_short_kernel<Op, kCount>
          <<<blocks_for(cuda, outputs * 32), kThreads, 0, cuda.compute()>>>(x, y, plan, outputs, n);
      return;
    }
    const int64_t pieces = (n + kPiece - 1) / kPiece;
    in_pieces(pieces, 1, [&](auto out) {
      reduce_long_kernel<Op, kCount>
          <<<blocks_for(cuda, outputs * pieces, 1), kThreads, 0, cuda.compute()>>>(
              x, out, plan, outputs, n, pieces, kPiece);
    });
  }

  template <int kCount>
  void leading() {
    const int64_t tiles = outputs * ((plan.length + 32 * kCount - 1) / (32 * kCount));
    // A block's share, if there are kBlocks.
    const int64_t share = (rows * tiles + kBlocks - 1) / kBlocks;
    const int64_t rows_per_piece = std::clamp((share + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce,
                                              2 * kRowsAtOnce, kRowsPerPiece);
    const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
    in_pieces(pieces, plan.length, [&]<class Out>(Out out) {
      const auto kernel = plan.reduced.axes == 1 ? reduce_rows_kernel<Op, kCount, true, T, Out>
                                                 : reduce_rows_kernel<Op, kCount, false, T, Out>;
      kernel<<<blocks_for(cuda, tiles * pieces, 1), dim3(32, 8), 0, cuda.compute()>>>(
          x, out, plan, outputs, rows, pieces, rows_per_piece);
    });
  }

  bool takes_packs_of(int count) const {
    auto fits = [&](const RowAxes& rows) {
      return std::all_of(rows.strides, rows.strides + rows.axes,
                         [&](int64_t stride) { return stride % count == 0; });
    };
    return aligned16({x}) && plan.length % count == 0 && fits(plan.kept) && fits(plan.reduced);
  }

  void run() {
    constexpr int kCount = kVector<T>;
    if (takes_packs_of(kCount)) {
      plan.last_is_reduced ? last<kCount>() : leading<kCount>();
    } else {
      plan.last_is_reduced ? last<1>() : leading<1>();
    }
    check_launch();
  }
};

// y f32 is allowed for x bf16: gradients of parameters are kept in f32.
template <class Op>
void run(CudaStream& cuda, const Tensor& x, const Tensor& y, const ReductionPlan& plan,
         double factor) {
  const auto with = [&]<class T, class Y>() {
    Launcher<Op, T, Y>{cuda, x.data<T>(), {y.data<Y>(), factor}, plan}.run();
  };
  if (x.dtype == DType::i32) return with.template operator()<int32_t, int32_t>();
  if (x.dtype == DType::f32) return with.template operator()<float, float>();
  if (y.dtype == DType::f32) return with.template operator()<bfloat16, float>();
  with.template operator()<bfloat16, bfloat16>();
}

}  // namespace

void reduce(Stream& stream, In x, Out y, IntList axes, std::string kind) {
  const Reduction reduction = check_reduce(x, y, axes);
  const ReductionPlan plan = plan_reduction(x.shape, reduction.is_reduced);
  CudaStream& cuda = on_cuda(stream);
  if (kind == "sum") return run<SumOf>(cuda, x, y, plan, 1);
  if (kind == "mean") {
    check_float("x", x);
    return run<SumOf>(cuda, x, y, plan, 1 / reduction.count);
  }
  if (kind == "max") return run<MaxOf>(cuda, x, y, plan, 1);
  if (kind == "min") return run<MinOf>(cuda, x, y, plan, 1);
  throw Error("ERR_ARGUMENT", format("unknown kind \"{}\"", kind));
}

}  // namespace llamaforge::cuda

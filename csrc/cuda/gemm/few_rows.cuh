// Parts of the kernels for products of few rows (few_rows.cu, few_rows_staged.cu, chain.cu): the
// rows of x and their norm, a stage of w in shared memory, and the end of a tile.
#pragma once

#include <cfloat>

#include "cuda/attention/hopper.cuh"
#include "cuda/attention/mma.cuh"
#include "cuda/gemm/few_rows.h"
#include "cuda/ops/pack.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda::few {

constexpr int kWarps = 8, kBlock = 32 * kWarps;  // that compute a product
constexpr int kRowPad = 32;                      // elements between rows of x in shared memory

struct Sizes {
  int rows, outputs, k;
  float eps;
};

enum class Input { kPlain, kNorm, kAddNorm };

// The threads that compute: a whole block, or the first kWarps warps of a larger one.
struct WholeBlock {
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  static __device__ __forceinline__ bool any(bool x) { return __syncthreads_or(x); }
};
struct FirstWarps {
  static __device__ __forceinline__ void sync() { hopper::named_sync(1, kBlock); }
  static __device__ __forceinline__ bool any(bool x) {
    int some;
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\nbar.red.or.pred q, 1, %2, p;\nselp.b32 %0, 1, "
        "0, q;\n}\n"
        : "=r"(some)
        : "r"(static_cast<int>(x)), "n"(kBlock)
        : "memory");
    return some != 0;
  }
};

// Eight numbers that another multiprocessor may have written during this kernel.
__device__ __forceinline__ uint4 load_latest(const bfloat16* p) {
  return __ldcg(reinterpret_cast<const uint4*>(p));
}

// Sums of eight numbers, rounded.
__device__ __forceinline__ uint4 add_words(const uint4& x, const uint4& y) {
  float a[8], b[8];
  load(reinterpret_cast<const bfloat16*>(&x), a);
  load(reinterpret_cast<const bfloat16*>(&y), b);
#pragma unroll
  for (int j = 0; j < 8; ++j) a[j] += b[j];
  uint4 sum;
  store(reinterpret_cast<bfloat16*>(&sum), a);
  return sum;
}

// ---- rows of x ----------------------------------------------------------------------------------

// Sums over the threads of a row of x; `threads` (32 to kBlock) of them, neighbours, have a row.
template <class Threads, class Number>
__device__ __forceinline__ Number sum_of_row(Number own, int threads, Number* of_warp) {
  own = warp_sum(own);
  if (threads == 32) return own;
  Threads::sync();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own;
  Threads::sync();
  const int first = static_cast<int>(threadIdx.x) / threads * threads / 32;
  Number sum = 0;
  for (int w = first; w < first + threads / 32; ++w) sum += of_warp[w];
  return sum;
}

// Copies the weight of the norm to shared memory.
__device__ __forceinline__ void read_norm(bfloat16* norm, const bfloat16* weight, int k) {
  for (int i = threadIdx.x * 8; i < k; i += kBlock * 8) {
    *reinterpret_cast<uint4*>(norm + i) = *reinterpret_cast<const uint4*>(weight + i);
  }
}

// Fills `rows` in shared memory with x. All copies are on their way at once.
__device__ __forceinline__ void copy_rows(bfloat16* rows, const bfloat16* x, const Sizes& sizes) {
  const int vectors = sizes.k / 8, pitch = sizes.k + kRowPad;
  for (int row = 0; row < sizes.rows; ++row) {
    for (int i = threadIdx.x; i < vectors; i += kBlock) {
      mma::copy_async(rows + row * pitch + i * 8, x + int64_t{row} * sizes.k + i * 8, true);
    }
  }
  mma::copy_commit();
  mma::copy_wait<0>();
}

// The norm of one row of at most kBlock vectors, which stays in registers; norm_rows() gives equal
// bits.
template <class Threads, class Read>
__device__ __forceinline__ void norm_row(bfloat16* row, const bfloat16* weight, const Sizes& sizes,
                                         double* of_warp, const Read& read) {
  const int i = static_cast<int>(threadIdx.x) * 8;
  const bool real = i < sizes.k;
  float v[8] = {}, squares = 0;
  if (real) {
    const uint4 words = read(0, i);
    load(reinterpret_cast<const bfloat16*>(&words), v);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
  const auto total = [&]<class Number>(Number own, Number* sums) {
    own = warp_sum(own);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = own;
    Threads::sync();
    Number sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w];
    return sum;
  };
  const float mean =
      total(squares, reinterpret_cast<float*>(of_warp)) / static_cast<float>(sizes.k) + sizes.eps;
  float factor = 1.0f / sqrtf(mean);
  // All threads have one mean.
  if (!(mean >= 1e-30f && mean <= FLT_MAX)) {
    double wide = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) wide += double{v[j]} * v[j];
    Threads::sync();
    wide = total(wide, of_warp);
    factor = static_cast<float>(1.0 / sqrt(wide / static_cast<double>(sizes.k) + sizes.eps));
  }
  if (!real) return;
  float w[8];
  load(weight + i, w);
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = v[j] * factor * w[j];
  store(row + i, v);
}

// Fills `rows` in shared memory with the norm of the rows whose numbers i to i + 7 read(row, i)
// returns; its weight is there already.
template <class Threads, class Read>
__device__ __forceinline__ void norm_rows(bfloat16* rows, const bfloat16* weight,
                                          const Sizes& sizes, const Read& read) {
  __shared__ double of_warp[kWarps];
  const int k = sizes.k, pitch = k + kRowPad, vectors = k / 8;
  if (sizes.rows == 1 && vectors <= kBlock) {
    return norm_row<Threads>(rows, weight, sizes, of_warp, read);
  }
  // The rows are taken in groups, so that each row has 32 threads at least.
  const int together = sizes.rows > 4 ? 8 : sizes.rows > 2 ? 4 : sizes.rows;
  const int threads = kBlock / together, thread = static_cast<int>(threadIdx.x) % threads;
  for (int first = 0; first < sizes.rows; first += together) {
    const int row = first + static_cast<int>(threadIdx.x) / threads;
    const bool real = row < sizes.rows;
    bfloat16* const own = rows + (real ? row : 0) * pitch;
    float squares = 0;
    for (int i = thread; real && i < vectors; i += threads) {
      const uint4 words = read(row, i * 8);
      *reinterpret_cast<uint4*>(own + i * 8) = words;
      float v[8];
      load(reinterpret_cast<const bfloat16*>(&words), v);
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
    }
    float sum = sum_of_row<Threads>(squares, threads, reinterpret_cast<float*>(of_warp));
    const float mean = sum / static_cast<float>(k) + sizes.eps;
    float factor = 1.0f / sqrtf(mean);
    // Squares that overflow or vanish in f32 are summed again in double, as in rms_norm.cu.
    const bool sure = !real || (mean >= 1e-30f && mean <= FLT_MAX);
    if (Threads::any(!sure)) {
      double wide = 0;
      for (int i = thread; real && i < vectors; i += threads) {
        float v[8];
        load(own + i * 8, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) wide += double{v[j]} * v[j];
      }
      wide = sum_of_row<Threads>(wide, threads, of_warp);
      if (!sure) factor = static_cast<float>(1.0 / sqrt(wide / static_cast<double>(k) + sizes.eps));
    }
    for (int i = thread; real && i < vectors; i += threads) {
      float v[8], w[8];
      load(own + i * 8, v);
      load(weight + i * 8, w);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = v[j] * factor * w[j];
      store(own + i * 8, v);
    }
  }
}

// Fills `rows` with what the product takes: x, or the norm of x + skip; then the first block also
// writes r. The caller waits for all threads after.
template <class Threads, Input kInput>
__device__ __forceinline__ void read_rows(bfloat16* rows, const bfloat16* x, const bfloat16* skip,
                                          const bfloat16* norm, bfloat16* r, const Sizes& sizes) {
  if constexpr (kInput == Input::kPlain) {
    copy_rows(rows, x, sizes);
  } else {
    norm_rows<Threads>(rows, norm, sizes, [&](int row, int i) {
      const int64_t at = int64_t{row} * sizes.k + i;
      uint4 words = load_latest(x + at);
      if constexpr (kInput == Input::kAddNorm) {
        words = add_words(words, load_latest(skip + at));
        if (blockIdx.x == 0) *reinterpret_cast<uint4*>(r + at) = words;
      }
      return words;
    });
  }
}

// ---- products -----------------------------------------------------------------------------------

// Several rows of x are the columns of a matrix (16, 8) whose rows are a lane's two rows of w, low
// and high, of all lanes: a product needs words of both rows as its operands. For one row of x that
// would waste seven columns of eight, so the 16 bytes that a lane has of one row of w are the whole
// operand. Words 0 and 2 then meet column 0 and give row l / 4 of the result, and words 1 and 3
// meet column 1 and give row l / 4 + 8; both belong to one output.

// The words of x that a lane has in those columns, of eight numbers from `x` on.
__device__ __forceinline__ uint2 words_of_one(const bfloat16* x) {
  const auto* const words = reinterpret_cast<const uint32_t*>(x) + threadIdx.x / 4 % 2;
  return {words[0], words[2]};
}

// Adds the products of one row of x with the lanes' rows of w.
__device__ __forceinline__ void multiply_one(float (&sum)[4], const uint4& w, const uint2& x) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
  mma::multiply(sum, words, x.x, x.y);
}

// A lane's result after multiply_one(), for l % 4 = 0.
__device__ __forceinline__ float result_of_one(const float (&sum)[4]) { return sum[0] + sum[3]; }

// Adds the products of all rows of x, whose column `at` is the lane's first; columns from k on
// count as 0. Of one row, sum[0] gets the products with low, and sum[1] those with high.
template <int kColumns>
__device__ __forceinline__ void multiply_rows(float (&sum)[2][4], const uint4& low,
                                              const uint4& high, const bfloat16* rows, int at,
                                              const Sizes& sizes) {
  if (kColumns == 1 && sizes.rows == 1) {
    const uint2 x = at < sizes.k ? words_of_one(rows + at) : make_uint2(0, 0);
    multiply_one(sum[0], low, x);
    multiply_one(sum[1], high, x);
    return;
  }
  const uint32_t even[4] = {low.x, high.x, low.y, high.y}, odd[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int row = c * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
    const uint4 v = row < sizes.rows && at < sizes.k
                        ? *reinterpret_cast<const uint4*>(rows + row * (sizes.k + kRowPad) + at)
                        : make_uint4(0, 0, 0, 0);
    mma::multiply(sum[c], even, v.x, v.y);
    mma::multiply(sum[c], odd, v.z, v.w);
  }
}

// ---- tiles --------------------------------------------------------------------------------------

// Outputs of a tile.
template <bool kSwiglu>
constexpr int kTile = kSwiglu ? 8 : 16;

__device__ __forceinline__ float silu(float x) {
  const float low = at_least(x, -200.0f);
  return low * __fdividef(1.0f, 1.0f + __expf(-low));
}

__device__ __forceinline__ float rounded(float x) { return widen(narrow<bfloat16>(x)); }

// Adds the warps' sums of a tile from `output` on, clears them, and gives each result to
// write(row, output, result). All threads call it.
template <class Threads, bool kSwiglu, int kColumns, class Write>
__device__ __forceinline__ void finish_tile(float (&sum)[2][4],
                                            float (&of_warp)[kWarps][kColumns * 128], int output,
                                            int end_output, const Sizes& sizes,
                                            const Write& write) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (kColumns == 1 && sizes.rows == 1) {
    sum[0][0] = result_of_one(sum[0]);
    sum[0][2] = result_of_one(sum[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[1][i] = 0;
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      of_warp[warp][c * 128 + lane * 4 + i] = sum[c][i];
      sum[c][i] = 0;
    }
  }
  Threads::sync();
  const auto total = [&](int at) {
    float all = 0;
#pragma unroll
    for (int v = 0; v < kWarps; ++v) all += of_warp[v][at];
    return all;
  };
  // Element i of lane l: row l / 4 of the tile, plus 8 if i >= 2, and row 2 (l % 4) + i % 2 of x.
  for (int e = threadIdx.x; e < kColumns * (kSwiglu ? 64 : 128); e += kBlock) {
    const int per_lane = kSwiglu ? 2 : 4, i = e % per_lane, l = e / per_lane % 32,
              c = e / (32 * per_lane);
    const int row = c * 8 + l % 4 * 2 + i % 2, at = c * 128 + l * 4 + i;
    const int own = output + l / 4 + (kSwiglu ? 0 : i / 2 * 8);
    if (row >= sizes.rows || own >= end_output) continue;
    float value = total(at);
    if constexpr (kSwiglu) value = silu(rounded(value)) * rounded(total(at + 2));
    write(row, own, narrow<bfloat16>(value));
  }
}

// ---- stages: a tile's rows of w in shared memory, kStage of their columns -----------------------

constexpr int kChunk = 512;  // columns that the warps of a block multiply at once, 64 each

// Bytes. The copy engine takes multiples of 16, but where they are none of 32, a step of
// TinyLlama-1.1B takes 15% longer (docs/LOG.md).
constexpr int kCopyAlignment = 128;

// Elements between rows of a stage.
template <int kStage>
constexpr int kStagePitch = kStage + kRowPad;
static_assert(kStagePitch<kChunk> * sizeof(bfloat16) % 32 == 0);

template <int kStage>
__host__ __device__ inline int stages_of_tile(int k) {
  return (k + kStage - 1) / kStage;
}

#if __CUDA_ARCH__ >= 900
// Starts the copies of stage `nth` of a tile, `count` outputs from `output` on, to `to`; with
// SwiGLU, the rows of up follow those of gate. Called by a warp.
template <int kStage>
__device__ __forceinline__ void fill_stage(bfloat16* to, hopper::Barrier* full, const bfloat16* w,
                                           bool swiglu, int output, int count, int nth,
                                           const Sizes& sizes) {
  const int lane = static_cast<int>(threadIdx.x) % 32, rows = swiglu ? 2 * count : count;
  const auto bytes = static_cast<uint32_t>(min(kStage, sizes.k - nth * kStage) * 2);
  if (lane == 0) hopper::barrier_expect_bytes(full, static_cast<uint32_t>(rows) * bytes);
  __syncwarp();
  if (lane < rows) {
    const int row = output + (lane < count ? lane : lane - count + sizes.outputs);
    hopper::bulk_load(w + int64_t{row} * sizes.k + nth * kStage, to + lane * kStagePitch<kStage>,
                      full, bytes);
  }
}
#endif

// Adds to `sum` the products of rows of x with a lane's two rows of w, low and high, in a chunk. A
// warp has 64 of its columns.
template <int kColumns>
__device__ __forceinline__ void multiply_chunk(float (&sum)[2][4], const bfloat16* low,
                                               const bfloat16* high, const bfloat16* rows,
                                               int chunk, const Sizes& sizes) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int within = warp * 64 + lane % 4 * 8;
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    if (chunk * kChunk + warp * 64 + u * 32 >= sizes.k) break;
    const uint4 a = *reinterpret_cast<const uint4*>(low + within + u * 32);
    const uint4 b = *reinterpret_cast<const uint4*>(high + within + u * 32);
    multiply_rows<kColumns>(sum, a, b, rows, chunk * kChunk + within + u * 32, sizes);
  }
}

// The rows of a stage that a lane multiplies: of a tile of `count` outputs. A lane beyond the tile
// repeats its last row, and nobody uses the sums.
template <bool kSwiglu>
__device__ __forceinline__ int2 rows_of_lane(int count) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, first = min(g, count - 1);
  return {first, kSwiglu ? count + first : min(g + 8, count - 1)};
}

// ---- host ---------------------------------------------------------------------------------------

// Shared memory for the rows of x and the weight of the norm.
inline size_t row_bytes(const FewRows& call) {
  const int64_t elements =
      int64_t{call.rows} * (call.k + kRowPad) + (call.norm_weight ? call.k : 0);
  return static_cast<size_t>(elements) * sizeof(bfloat16);
}

inline Sizes sizes_of(const FewRows& call) {
  return {call.rows, call.swiglu ? call.products / 2 : call.products, call.k, call.eps};
}

// Calls body<Input, kSwiglu>() for the kind of the call.
template <class Body>
void with_kind(const FewRows& call, const Body& body) {
  if (!call.norm_weight) return body.template operator()<Input::kPlain, false>();
  if (call.skip && call.swiglu) return body.template operator()<Input::kAddNorm, true>();
  if (call.skip) return body.template operator()<Input::kAddNorm, false>();
  if (call.swiglu) return body.template operator()<Input::kNorm, true>();
  body.template operator()<Input::kNorm, false>();
}

// Outputs of a block, where `fitting` blocks fit a multiprocessor. Small weights take one block a
// multiprocessor, which leaves room for the next kernel's blocks.
inline int outputs_of_block(const CudaStream& cuda, int outputs, int tile, int fitting) {
  const bool small = outputs <= cuda.multiprocessors() * 2 * tile;
  const int most = cuda.multiprocessors() * (small ? 1 : fitting);
  return std::max((outputs + most - 1) / most, std::min(tile, outputs));
}

// Whether a kernel may read the weights while those before it still run.
inline bool early(const CudaStream& cuda, const FewRows& call) {
  return cuda.unwritten(call.w) && (!call.norm_weight || cuda.unwritten(call.norm_weight));
}

}  // namespace llamaforge::cuda::few

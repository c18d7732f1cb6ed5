// y (R,N) = x (R,K) · wᵀ for few rows R, as decoding has them: w (N,K) is read once, which is the
// floor, so a sum costs nothing and each block may repeat the norm in front of the product:
//   r = x + skip;  y = rms_norm(r) · wᵀ;  with SwiGLU  y = silu(gate) · up  of that product
// Each step is rounded as the kernel of its own rounds it (rms_norm.cu, swiglu.cu).
//
// A block has an equal share of the outputs, and takes it in tiles of 16 rows of w, the last of which
// is a part: the rows of an mma.m16n8k16, whose 8 columns are rows of x. With SwiGLU they are 8 rows
// of gate and the 8 rows of up beside them, whose sums lie in one thread. The warps
// of a block divide k, and their sums are added in order, so a row's result depends on neither the
// other rows nor the GPU. The order of k within a product is free, so a lane reads 16 bytes of w and
// x where mma.m16n8k16 wants pairs. A lane always has kAhead blocks of its two rows of w on their
// way in registers, over the end of a tile into the next one.
//
// The kernel starts while the kernels before it still run. If no kernel of the same graph writes w,
// the first blocks of w are on their way before x exists, and the later ones come to the L2 cache.
#include "cuda/gemm/few_rows.h"

#include <cfloat>

#include "cuda/attention/hopper.cuh"
#include "cuda/attention/mma.cuh"
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/norm_linear.h"

namespace llamaforge::cuda {

namespace {

constexpr int kWarps = 8, kBlock = 32 * kWarps;
constexpr int kAhead = 8;                             // blocks of 32 columns per lane and chunk
constexpr int kChunk = kWarps * kAhead * 32;          // columns that a block has on their way
constexpr int kRowPad = 32;                           // elements between rows of x in shared memory
constexpr size_t kMostShared = size_t{160} << 10;
constexpr int kPerMultiprocessor = 2;

struct Sizes {
  int rows, products, outputs, k;
  int each;  // outputs of a block
  float eps;
};

// Sums over the threads of a row of x; `threads` (32 to kBlock) of them, neighbours, have a row.
template <class Number>
__device__ __forceinline__ Number sum_of_row(Number own, int threads, Number* of_warp) {
  own = warp_sum(own);
  if (threads == 32) return own;
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own;
  __syncthreads();
  const int first = static_cast<int>(threadIdx.x) / threads * threads / 32;
  Number sum = 0;
  for (int w = first; w < first + threads / 32; ++w) sum += of_warp[w];
  return sum;
}

// Fills `rows` in shared memory with the norm of x + skip; its weight is there already. The first
// block also writes r.
template <bool kAdd>
__device__ __forceinline__ void norm_rows(bfloat16* rows, const bfloat16* x, const bfloat16* skip,
                                          const bfloat16* weight, bfloat16* r, const Sizes& sizes) {
  __shared__ double of_warp[kWarps];
  const int k = sizes.k, pitch = k + kRowPad, vectors = k / 8;
  // The rows are taken in groups, so that each row has 32 threads at least.
  const int together = sizes.rows >= kWarps ? kWarps : sizes.rows > 4 ? 8 : sizes.rows > 2 ? 4 : sizes.rows;
  const int threads = kBlock / together, thread = static_cast<int>(threadIdx.x) % threads;
  for (int first = 0; first < sizes.rows; first += together) {
    const int row = first + static_cast<int>(threadIdx.x) / threads;
    const bool real = row < sizes.rows;
    const int64_t from = int64_t{real ? row : 0} * k;
    bfloat16* const own = rows + (real ? row : 0) * pitch;
    float squares = 0;
    for (int i = thread; real && i < vectors; i += threads) {
      float v[8];
      load(x + from + i * 8, v);
      if (kAdd) {
        float s[8];
        load(skip + from + i * 8, s);
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] += s[j];
        store(own + i * 8, v);
        load(own + i * 8, v);
        if (blockIdx.x == 0) store(r + from + i * 8, v);
      } else {
        store(own + i * 8, v);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
    }
    float sum = sum_of_row(squares, threads, reinterpret_cast<float*>(of_warp));
    const float mean = sum / static_cast<float>(k) + sizes.eps;
    float factor = 1.0f / sqrtf(mean);
    // Squares that overflow or vanish in f32 are summed again in double, as in rms_norm.cu.
    const bool sure = !real || (mean >= 1e-30f && mean <= FLT_MAX);
    if (__syncthreads_or(!sure)) {
      double wide = 0;
      for (int i = thread; real && i < vectors; i += threads) {
        float v[8];
        load(own + i * 8, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) wide += double{v[j]} * v[j];
      }
      wide = sum_of_row(wide, threads, of_warp);
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

__device__ __forceinline__ float silu(float x) {
  const float low = at_least(x, -200.0f);
  return low * __fdividef(1.0f, 1.0f + __expf(-low));
}

__device__ __forceinline__ float rounded(float x) { return widen(narrow<bfloat16>(x)); }

// Adds the warps' sums of a tile from `output` on, clears them, and writes the results. All threads
// of the block call it.
template <bool kSwiglu, int kColumns>
__device__ __forceinline__ void finish_tile(float (&sum)[kColumns][4], float (&of_warp)[kWarps][kColumns * 128],
                                            bfloat16* y, int output, int end_output, const Sizes& sizes) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      of_warp[warp][c * 128 + lane * 4 + i] = sum[c][i];
      sum[c][i] = 0;
    }
  }
  __syncthreads();
  const auto total = [&](int at) {
    float all = 0;
#pragma unroll
    for (int v = 0; v < kWarps; ++v) all += of_warp[v][at];
    return all;
  };
  // Element i of lane l: row l / 4 of the tile, plus 8 if i >= 2, and row 2 (l % 4) + i % 2 of x.
  for (int e = threadIdx.x; e < kColumns * (kSwiglu ? 64 : 128); e += kBlock) {
    const int per_lane = kSwiglu ? 2 : 4, i = e % per_lane, l = e / per_lane % 32, c = e / (32 * per_lane);
    const int row = c * 8 + l % 4 * 2 + i % 2, at = c * 128 + l * 4 + i;
    const int own = output + l / 4 + (kSwiglu ? 0 : i / 2 * 8);
    if (row >= sizes.rows || own >= end_output) continue;
    float value = total(at);
    if constexpr (kSwiglu) value = silu(rounded(value)) * rounded(total(at + 2));
    y[int64_t{row} * sizes.outputs + own] = narrow<bfloat16>(value);
  }
}

enum class Input { kPlain, kNorm, kAddNorm };

// kColumns: groups of 8 rows of x. early: nothing in the graph writes w. The pointers have no
// __restrict__, so that no load moves before wait_for_previous().
template <Input kInput, bool kSwiglu, int kColumns>
__global__ void __launch_bounds__(kBlock, kPerMultiprocessor)
    few_rows_kernel(const bfloat16* x, const bfloat16* skip, const bfloat16* norm_weight, const bfloat16* w,
                    bfloat16* r, bfloat16* y, const Sizes sizes, const bool early) {
  extern __shared__ uint4 shared[];
  __shared__ float sums[2][kWarps][kColumns * 128];
  constexpr int kTile = kSwiglu ? 8 : 16;  // outputs
  auto* const rows = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const norm = rows + sizes.rows * (sizes.k + kRowPad);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, k = sizes.k, pitch = k + kRowPad;
  const int chunks = (k + kChunk - 1) / kChunk;

  const int end_output = min((static_cast<int>(blockIdx.x) + 1) * sizes.each, sizes.outputs);
  uint4 low[kAhead], high[kAhead];
  // The lane's two rows of w for the tile from this output on; null beyond the block's outputs.
  const auto lines_of = [&](int output, const bfloat16*& first, const bfloat16*& second) {
    const int row = output + g, other = kSwiglu ? row + sizes.outputs : row + 8;
    first = row < end_output ? w + int64_t{row} * k : nullptr;
    second = (kSwiglu ? row : other) < end_output ? w + int64_t{other} * k : nullptr;
  };
  const auto column = [&](int chunk, int u) {
    return chunk * kChunk + ((u / 2 * kWarps + warp) * 2 + u % 2) * 32 + t * 8;
  };
  const auto fetch = [&](const bfloat16* first, const bfloat16* second, int at, int u) {
    low[u] = at < k && first ? *reinterpret_cast<const uint4*>(first + at) : make_uint4(0, 0, 0, 0);
    high[u] = at < k && second ? *reinterpret_cast<const uint4*>(second + at) : make_uint4(0, 0, 0, 0);
  };
  int output = blockIdx.x * sizes.each;
  const bfloat16 *first, *second;
  lines_of(output, first, second);
  const auto begin = [&] {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) fetch(first, second, column(0, u), u);
  };

  [[maybe_unused]] const auto read_norm = [&] {
    for (int i = threadIdx.x * 8; i < k; i += kBlock * 8) {
      *reinterpret_cast<uint4*>(norm + i) = *reinterpret_cast<const uint4*>(norm_weight + i);
    }
  };

  let_next_start();
  if (early) {
    begin();
#if __CUDA_ARCH__ >= 900
    // The rest of the tile, and the next tile, come to the L2 cache meanwhile.
    const auto prefetch = [&](const bfloat16* line, int from) {
      if (line && from < k) {
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(line + from), "r"((k - from) * 2) : "memory");
      }
    };
    if (warp == 0 && t < 2) {
      prefetch(t == 0 ? first : second, min(k, kChunk));
      const bfloat16 *a, *b;
      lines_of(output + kTile, a, b);
      prefetch(t == 0 ? a : b, 0);
    }
#endif
    if constexpr (kInput != Input::kPlain) read_norm();
  }
  wait_for_previous();
  if (!early) begin();

  if constexpr (kInput == Input::kPlain) {
    const int vectors = k / 8;
    for (int i = threadIdx.x; i < sizes.rows * vectors; i += kBlock) {
      const int row = i / vectors, at = (i - row * vectors) * 8;
      *reinterpret_cast<uint4*>(rows + row * pitch + at) = *reinterpret_cast<const uint4*>(x + int64_t{row} * k + at);
    }
  } else {
    if (!early) read_norm();
    norm_rows<kInput == Input::kAddNorm>(rows, x, skip, norm, r, sizes);
  }
  __syncthreads();

  float sum[kColumns][4] = {};
  int buffer = 0;
  for (int chunk = 0;;) {
    const bool ends = chunk + 1 == chunks;
    const int next_output = ends ? output + kTile : output, next_chunk = ends ? 0 : chunk + 1;
    const bool more = next_output < end_output;
    if (ends && more) lines_of(next_output, first, second);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int at = column(chunk, u);
      const uint4 a = low[u], b = high[u];
      const uint32_t even[4] = {a.x, b.x, a.y, b.y}, odd[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int row = c * 8 + g;
        const uint4 v = row < sizes.rows && at < k ? *reinterpret_cast<const uint4*>(rows + row * pitch + at)
                                                   : make_uint4(0, 0, 0, 0);
        mma::multiply(sum[c], even, v.x, v.y);
        mma::multiply(sum[c], odd, v.z, v.w);
      }
      if (more) fetch(first, second, column(next_chunk, u), u);
    }
    if (ends) {
finish_tile<kSwiglu, kColumns>(sum, sums[buffer], y, output, end_output, sizes);
      buffer ^= 1;
      output = next_output;
      if (!more) break;
    }
    chunk = next_chunk;
  }
}

// ---- Hopper -------------------------------------------------------------------------------------------------------

// The kernel above for Hopper, whose copy engine brings w to shared memory: loads in flight take
// neither registers nor the L1 cache, whose size limits the kernel above. A stage is a tile of
// kStageColumns columns. A warp that has used a stage refills the stage before it, which the other
// warps have left by then.
constexpr int kStageColumns = 512, kStagePitch = kStageColumns + kRowPad, kMostStages = 12;
constexpr size_t kStageBytes = size_t{16} * kStagePitch * sizeof(bfloat16);

template <Input kInput, bool kSwiglu, int kColumns>
__global__ void __launch_bounds__(kBlock, kPerMultiprocessor)
    staged_rows_kernel(const bfloat16* x, const bfloat16* skip, const bfloat16* norm_weight, const bfloat16* w,
                       bfloat16* r, bfloat16* y, const Sizes sizes, const bool early, const int stages) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ uint4 shared[];
  __shared__ float sums[2][kWarps][kColumns * 128];
  __shared__ hopper::Barrier full[kMostStages], empty[kMostStages];
  constexpr int kTile = kSwiglu ? 8 : 16;  // outputs
  auto* const ring = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const rows = ring + stages * 16 * kStagePitch;
  bfloat16* const norm = rows + sizes.rows * (sizes.k + kRowPad);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, k = sizes.k, pitch = k + kRowPad;
  const int begin_output = static_cast<int>(blockIdx.x) * sizes.each;
  const int end_output = min(begin_output + sizes.each, sizes.outputs);
  const int chunks = (k + kStageColumns - 1) / kStageColumns;
  const int total = (end_output - begin_output + kTile - 1) / kTile * chunks;

  // Starts the copies of a stage's 16 rows. Called by a warp.
  const auto fill = [&](int nth) {
    const int stage = nth % stages, chunk = nth % chunks, output = begin_output + nth / chunks * kTile;
    const int count = min(kTile, end_output - output), columns = min(kStageColumns, k - chunk * kStageColumns);
    if (lane == 0) {
      hopper::barrier_expect_bytes(&full[stage], static_cast<uint32_t>((kSwiglu ? 2 : 1) * count * columns * 2));
    }
    __syncwarp();
    if (lane < 16 && lane % kTile < count) {
      const int row = output + lane % kTile + lane / kTile * sizes.outputs;
      hopper::bulk_load(w + int64_t{row} * k + chunk * kStageColumns, ring + (stage * 16 + lane) * kStagePitch,
                        &full[stage], static_cast<uint32_t>(columns * 2));
    }
  };
  const auto begin = [&] {
    if (warp != 0) return;
    if (lane == 0) {
      for (int s = 0; s < stages; ++s) {
        hopper::barrier_init(&full[s], 1);
        hopper::barrier_init(&empty[s], kWarps * hopper::kReleaseArrivals);
      }
      hopper::barrier_init_fence();
      hopper::fence_async_proxy();
    }
    __syncwarp();
    for (int nth = 0; nth < min(stages, total); ++nth) fill(nth);
  };
  [[maybe_unused]] const auto read_norm = [&] {
    for (int i = threadIdx.x * 8; i < k; i += kBlock * 8) {
      *reinterpret_cast<uint4*>(norm + i) = *reinterpret_cast<const uint4*>(norm_weight + i);
    }
  };

  let_next_start();
  if (early) {
    begin();
    if constexpr (kInput != Input::kPlain) read_norm();
  }
  wait_for_previous();
  if (!early) begin();
  if constexpr (kInput == Input::kPlain) {
    const int vectors = k / 8;
    for (int i = threadIdx.x; i < sizes.rows * vectors; i += kBlock) {
      const int row = i / vectors, at = (i - row * vectors) * 8;
      *reinterpret_cast<uint4*>(rows + row * pitch + at) = *reinterpret_cast<const uint4*>(x + int64_t{row} * k + at);
    }
  } else {
    if (!early) read_norm();
    norm_rows<kInput == Input::kAddNorm>(rows, x, skip, norm, r, sizes);
  }
  __syncthreads();

  float sum[kColumns][4] = {};
  int buffer = 0, chunk = 0, output = begin_output, stage = 0, before = 0;
  uint32_t parity = 0, parity_before = 0;
  for (int nth = 0; nth < total; ++nth) {
    hopper::barrier_wait(&full[stage], parity);
    const bfloat16* const low = ring + (stage * 16 + g) * kStagePitch + warp * 64 + t * 8;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int at = chunk * kStageColumns + warp * 64 + u * 32;
      if (at >= k) break;
      const uint4 a = *reinterpret_cast<const uint4*>(low + u * 32);
      const uint4 b = *reinterpret_cast<const uint4*>(low + 8 * kStagePitch + u * 32);
      const uint32_t even[4] = {a.x, b.x, a.y, b.y}, odd[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int row = c * 8 + g;
        const uint4 v = row < sizes.rows ? *reinterpret_cast<const uint4*>(rows + row * pitch + at + t * 8)
                                         : make_uint4(0, 0, 0, 0);
        mma::multiply(sum[c], even, v.x, v.y);
        mma::multiply(sum[c], odd, v.z, v.w);
      }
    }
    hopper::release_stage(&empty[stage]);
    if (nth > 0 && warp == nth % kWarps && nth - 1 + stages < total) {
      hopper::barrier_wait(&empty[before], parity_before);
      fill(nth - 1 + stages);
    }
    before = stage;
    parity_before = parity;
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
    if (++chunk < chunks) continue;
    finish_tile<kSwiglu, kColumns>(sum, sums[buffer], y, output, end_output, sizes);
    buffer ^= 1;
    chunk = 0;
    output += kTile;
  }
#endif
}

// ---- launches -----------------------------------------------------------------------------------------------------

size_t shared_bytes(const FewRows& call) {
  const int64_t rows = int64_t{call.rows} * (call.k + kRowPad) + (call.norm_weight ? call.k : 0);
  return static_cast<size_t>(rows) * sizeof(bfloat16);
}

// Stages of the kernel for Hopper, none if it does not take the call, and how many blocks fit a
// multiprocessor: two where the rows of x leave room, so that the next kernel's stages are on their
// way while this one ends.
struct Staging {
  int stages = 0, blocks = kPerMultiprocessor;
};
Staging staging_of(const CudaStream& cuda, const FewRows& call) {
  if (cuda.compute_capability() < 90 || call.k % 32 != 0) return {};
  constexpr size_t kStatic = size_t{18} << 10, kOfBlock = size_t{227} << 10;
  const size_t used = shared_bytes(call) + (call.rows <= 8 ? kStatic / 2 : kStatic) + 2048;
  for (const int blocks : {2, 1}) {
    const size_t room = kOfBlock / static_cast<size_t>(blocks);
    if (room < used + 3 * kStageBytes) continue;
    return {static_cast<int>(std::min<size_t>((room - used) / kStageBytes, kMostStages)), blocks};
  }
  return {};
}

template <Input kInput, bool kSwiglu>
void launch(CudaStream& cuda, const FewRows& call, Sizes sizes) {
  // Small weights take one block a multiprocessor, which leaves room for the next kernel's blocks.
  constexpr int kTile = kSwiglu ? 8 : 16;
  const bool small = sizes.outputs <= cuda.multiprocessors() * 2 * kTile;
  const auto [stages, fitting] = staging_of(cuda, call);
  const int most = cuda.multiprocessors() * (small ? 1 : fitting);
  sizes.each = std::max((sizes.outputs + most - 1) / most, std::min(kTile, sizes.outputs));
  const auto blocks = static_cast<unsigned>((sizes.outputs + sizes.each - 1) / sizes.each);
  const bool early = cuda.unwritten(call.w) && (!call.norm_weight || cuda.unwritten(call.norm_weight));
  const size_t bytes = shared_bytes(call);
  if (stages > 0) {
    const auto kernel = sizes.rows <= 8 ? staged_rows_kernel<kInput, kSwiglu, 1> : staged_rows_kernel<kInput, kSwiglu, 2>;
    const size_t all = bytes + static_cast<size_t>(stages) * kStageBytes;
    LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(all)));
    // Kernels that divide a multiprocessor's memory differently do not run beside each other.
    LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       static_cast<int>(cudaSharedmemCarveoutMaxShared)));
    return launch_early(cuda, kernel, blocks, kBlock, all, call.x, call.skip, call.norm_weight, call.w, call.r, call.y,
                        sizes, early, stages);
  }
  const auto kernel = sizes.rows <= 8 ? few_rows_kernel<kInput, kSwiglu, 1> : few_rows_kernel<kInput, kSwiglu, 2>;
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  launch_early(cuda, kernel, blocks, kBlock, bytes, call.x, call.skip, call.norm_weight, call.w,
               call.r, call.y, sizes, early);
}

template <Input kInput>
void launch(CudaStream& cuda, const FewRows& call, const Sizes& sizes) {
  call.swiglu ? launch<kInput, true>(cuda, call, sizes) : launch<kInput, false>(cuda, call, sizes);
}

}  // namespace

bool few_rows(CudaStream& cuda, const FewRows& call) {
  const bool takes = call.rows >= 1 && call.rows <= kFewRows && call.k >= 8 && call.k % 8 == 0 &&
                     call.products >= 1 && shared_bytes(call) <= kMostShared &&
                     aligned16({call.x, call.w, call.norm_weight, call.skip, call.r});
  if (!takes) return false;
  const Sizes sizes = {call.rows, call.products, call.swiglu ? call.products / 2 : call.products, call.k, 0, call.eps};
  if (!call.norm_weight) {
    launch<Input::kPlain, false>(cuda, call, sizes);
  } else if (call.skip) {
    launch<Input::kAddNorm>(cuda, call, sizes);
  } else {
    launch<Input::kNorm>(cuda, call, sizes);
  }
  return true;
}

bool multiply_few_rows(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, void* c,
                       bool accumulate) {
  const bool takes = shape.batch == 1 && shape.m <= kFewRows && !a.transposed && b.transposed && !accumulate &&
                     shape.n <= INT32_MAX / 2 && shape.k <= 1 << 20 && shape.input == DType::bf16 &&
                     shape.output == DType::bf16;
  if (!takes) return false;
  FewRows call = {};
  call.x = static_cast<const bfloat16*>(a.data);
  call.w = static_cast<const bfloat16*>(b.data);
  call.y = static_cast<bfloat16*>(c);
  call.rows = static_cast<int>(shape.m);
  call.products = static_cast<int>(shape.n);
  call.k = static_cast<int>(shape.k);
  return few_rows(cuda, call);
}

// ---- the op -------------------------------------------------------------------------------------------------------

namespace {

bool in_one_kernel(CudaStream& cuda, const NormLinearSize& size, const Tensor& x, const std::optional<In>& skip,
                   const Tensor& norm_weight, const Tensor& weight, const std::optional<Out>& r, const Tensor& y,
                   double eps, bool swiglu) {
  if (x.dtype != DType::bf16 || norm_weight.dtype != DType::bf16 || size.rows > kFewRows || size.inputs > 1 << 20 ||
      size.products > INT32_MAX / 2) {
    return false;
  }
  FewRows call = {};
  call.x = x.data<bfloat16>();
  call.w = weight.data<bfloat16>();
  call.y = y.data<bfloat16>();
  call.rows = static_cast<int>(size.rows);
  call.products = static_cast<int>(size.products);
  call.k = static_cast<int>(size.inputs);
  call.swiglu = swiglu;
  call.norm_weight = norm_weight.data<bfloat16>();
  call.skip = skip ? skip->data<bfloat16>() : nullptr;
  call.r = r ? r->data<bfloat16>() : nullptr;
  call.eps = static_cast<float>(eps);
  return few_rows(cuda, call);
}

}  // namespace

void norm_linear(Stream& stream, In x, std::optional<In> skip, In norm_weight, In weight, std::optional<Out> r, Out y,
                 double eps, bool swiglu) {
  CudaStream& cuda = on_cuda(stream);
  const NormLinearSize size = check_norm_linear(x, skip, norm_weight, weight, r, y, swiglu);
  if (y.numel() == 0) return;
  if (in_one_kernel(cuda, size, x, skip, norm_weight, weight, r, y, eps, swiglu)) return;
  const Tensor normed = temporary(x, x.shape, x.dtype), rstd = temporary(x, {size.rows}, DType::f32);
  if (skip) {
    add_rms_norm_forward(stream, x, *skip, norm_weight, *r, Out{normed}, Out{rstd}, eps);
  } else {
    rms_norm_forward(stream, x, norm_weight, Out{normed}, Out{rstd}, eps);
  }
  if (!swiglu) return gemm(stream, In{normed}, weight, y, false, true, false);
  const Tensor product = temporary(x, {size.rows, size.products}, x.dtype);
  gemm(stream, In{normed}, weight, Out{product}, false, true, false);
  swiglu_forward(stream, In{product}, y);
}

}  // namespace llamaforge::cuda

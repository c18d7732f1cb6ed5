// The kernel of few_rows.cu for Hopper, whose copy engine brings w to shared memory: loads in
// flight take neither registers nor the L1 cache, whose size limits that kernel. A stage has the
// rows of a tile in kStage columns. A warp that has used a stage refills the stage before
// it, which the other warps have left by then.
#include "cuda/gemm/few_rows.cuh"

namespace llamaforge::cuda {

namespace {

using few::Input;
using few::kBlock;
using few::kRowPad;
using few::kTile;
using few::kWarps;
using few::Sizes;
using few::WholeBlock;

constexpr int kMostStages = 12, kPerMultiprocessor = 2;
constexpr int kStage = few::kChunk, kPitch = few::kStagePitch<kStage>;
constexpr size_t kStageBytes = 16 * kPitch * sizeof(bfloat16);

template <Input kInput, bool kSwiglu, int kColumns>
__global__ void __launch_bounds__(kBlock, kPerMultiprocessor)
    staged_rows_kernel(const bfloat16* x, const bfloat16* skip, const bfloat16* norm_weight,
                       const bfloat16* w, bfloat16* r, bfloat16* y, const Sizes sizes,
                       const int each, const bool early, const int stages) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(few::kCopyAlignment) uint4 shared[];
  __shared__ float sums[2][kWarps][kColumns * 128];
  __shared__ hopper::Barrier full[kMostStages], empty[kMostStages];
  constexpr int kOutputs = kTile<kSwiglu>;
  auto* const ring = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const rows = ring + stages * 16 * kPitch;
  bfloat16* const norm = rows + sizes.rows * (sizes.k + kRowPad);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int begin_output = static_cast<int>(blockIdx.x) * each;
  const int end_output = min(begin_output + each, sizes.outputs);
  const int chunks = few::stages_of_tile<kStage>(sizes.k);
  const int total = (end_output - begin_output + kOutputs - 1) / kOutputs * chunks;

  const auto fill = [&](int nth) {
    const int stage = nth % stages, output = begin_output + nth / chunks * kOutputs;
    few::fill_stage<kStage>(ring + stage * 16 * kPitch, &full[stage], w, kSwiglu, output,
                            min(kOutputs, end_output - output), nth % chunks, sizes);
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

  let_next_start();
  if (early) {
    begin();
    if constexpr (kInput != Input::kPlain) few::read_norm(norm, norm_weight, sizes.k);
  }
  wait_for_previous();
  if (!early) {
    begin();
    if constexpr (kInput != Input::kPlain) few::read_norm(norm, norm_weight, sizes.k);
  }
  few::read_rows<WholeBlock, kInput>(rows, x, skip, norm, r, sizes);
  __syncthreads();

  float sum[2][4] = {};
  int buffer = 0, chunk = 0, output = begin_output, stage = 0, before = 0;
  uint32_t parity = 0, parity_before = 0;
  for (int nth = 0; nth < total; ++nth) {
    hopper::barrier_wait(&full[stage], parity);
    const bfloat16* const in_stage = ring + stage * 16 * kPitch;
    const int2 own = few::rows_of_lane<kSwiglu>(min(kOutputs, end_output - output));
    few::multiply_chunk<kColumns>(sum, in_stage + own.x * kPitch, in_stage + own.y * kPitch, rows,
                                  chunk, sizes);
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
    few::finish_tile<WholeBlock, kSwiglu, kColumns>(
        sum, sums[buffer], output, end_output, sizes,
        [&](int row, int own, bfloat16 result) { y[int64_t{row} * sizes.outputs + own] = result; });
    buffer ^= 1;
    chunk = 0;
    output += kOutputs;
  }
#endif
}

// Stages of the kernel, none if it does not take the call, and how many blocks fit a
// multiprocessor: two where the rows of x leave room, so that the next kernel's stages are on their
// way while this one ends.
struct Staging {
  int stages = 0, blocks = kPerMultiprocessor;
};
Staging staging_of(const CudaStream& cuda, const FewRows& call) {
  if (cuda.compute_capability() < 90 || call.k % 32 != 0) return {};
  constexpr size_t kStatic = size_t{18} << 10, kOfBlock = size_t{227} << 10;
  const size_t used = few::row_bytes(call) + (call.rows <= 8 ? kStatic / 2 : kStatic) + 2048;
  for (const int blocks : {2, 1}) {
    const size_t room = kOfBlock / static_cast<size_t>(blocks);
    if (room < used + 3 * kStageBytes) continue;
    return {static_cast<int>(std::min<size_t>((room - used) / kStageBytes, kMostStages)), blocks};
  }
  return {};
}

}  // namespace

bool launch_staged_rows(CudaStream& cuda, const FewRows& call) {
  const auto [stages, fitting] = staging_of(cuda, call);
  if (stages == 0) return false;
  const Sizes sizes = few::sizes_of(call);
  const size_t bytes = few::row_bytes(call) + static_cast<size_t>(stages) * kStageBytes;
  few::with_kind(call, [&]<Input kInput, bool kSwiglu>() {
    const auto kernel = sizes.rows <= 8 ? staged_rows_kernel<kInput, kSwiglu, 1>
                                        : staged_rows_kernel<kInput, kSwiglu, 2>;
    const int each = few::outputs_of_block(cuda, sizes.outputs, kTile<kSwiglu>, fitting);
    const auto blocks = static_cast<unsigned>((sizes.outputs + each - 1) / each);
    LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(bytes)));
    // Kernels that divide a multiprocessor's memory differently do not run beside each other.
    LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       static_cast<int>(cudaSharedmemCarveoutMaxShared)));
    launch_early(cuda, kernel, blocks, kBlock, bytes, call.x, call.skip, call.norm_weight, call.w,
                 call.r, call.y, sizes, each, few::early(cuda, call), stages);
  });
  return true;
}

}  // namespace llamaforge::cuda

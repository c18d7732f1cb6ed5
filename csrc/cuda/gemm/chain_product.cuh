// A product of a chain, as the warps that compute make it from the stages in the ring.
#pragma once

#include "cuda/gemm/chain_stages.cuh"

namespace llamaforge::cuda::chain {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using few::FirstWarps;
using few::kWarps;

constexpr int kSteps = kStage / 32 / kWarps;  // of 32 columns that a warp takes of a stage

// A warp's first column in a step of a stage, and its lane's first column from there on.
__device__ __forceinline__ int columns_of_step(int step) {
  return step / 2 * few::kChunk + static_cast<int>(threadIdx.x) / 32 * 64 + step % 2 * 32;
}
__device__ __forceinline__ int column_of_lane() { return static_cast<int>(threadIdx.x) % 4 * 8; }

// Fills numbers[i] with read(the lane's first column of step i), or with 0 from `columns` on: a
// stage at the end of a row may have fewer columns than others.
template <bool kWhole, class Number, class Read>
__device__ __forceinline__ void read_steps(Number (&numbers)[kSteps], int columns,
                                           const Read& read) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int at = columns_of_step(i);
    numbers[i] = kWhole || at < columns ? read(at + column_of_lane()) : Number{};
  }
}

// A lane's numbers of a stage: of its row of w, and of x.
struct Weights {
  uint4 w[kSteps];
  template <bool kWhole>
  __device__ __forceinline__ void read(const bfloat16* from, int columns) {
    read_steps<kWhole>(w, columns,
                       [&](int at) { return *reinterpret_cast<const uint4*>(from + at); });
  }
};
struct Inputs {
  uint2 x[kSteps];
  template <bool kWhole>
  __device__ __forceinline__ void read(const bfloat16* from, int columns) {
    read_steps<kWhole>(x, columns, [&](int at) { return few::words_of_one(from + at); });
  }
};

// The stages, one after the other, as the warps that compute find them in the ring.
struct Stages {
  const Ring& ring;
  Cursor cursor = {};
  int read = 0, released = 0;

  // Waits for the next stage, of `rows` rows, and starts to read the lane's numbers.
  template <bool kWhole>
  __device__ __forceinline__ void take(Weights& weights, int rows, int columns) {
    const int place = cursor.take(ring, rows);
    const int own = min(static_cast<int>(threadIdx.x) % 32 / 4, rows - 1);
    hopper::barrier_wait(&ring.full[read % kSlots], read / kSlots % 2);
    ++read;
    weights.read<kWhole>(ring.memory + (place + own) * kPitch, columns);
  }
  // Gives the place of the oldest stage back, whose numbers the warp has used.
  __device__ __forceinline__ void release() {
    hopper::release_stage(&ring.empty[released % kSlots]);
    ++released;
  }
  // Adds the products of the oldest stage that was taken, and gives its place back.
  __device__ __forceinline__ void multiply(float (&sum)[4], const Weights& weights,
                                           const Inputs& inputs) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) few::multiply_one(sum, weights.w[i], inputs.x[i]);
    release();
  }
};

// The warps' sums of two tiles in turn: the first 8 of a warp are those of its low rows.
using TileSums = float[2][kWarps][kTile<false>];

// Adds the warps' sums of a tile, clears them, and gives each result to write(output, result), all
// from the first warp. All threads call it.
template <bool kSwiglu, class Write>
__device__ __forceinline__ void finish_tile(float (&sum)[2][4],
                                            float (&of_warp)[kWarps][kTile<false>], int output,
                                            int count, const Write& write) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (lane % 4 == 0) {
    of_warp[warp][lane / 4] = few::result_of_one(sum[0]);
    of_warp[warp][lane / 4 + kRowsOfStage] = few::result_of_one(sum[1]);
  }
#pragma unroll
  for (float(&of_rows)[4] : sum) of_rows[0] = of_rows[1] = of_rows[2] = of_rows[3] = 0;
  FirstWarps::sync();
  if (warp != 0 || lane >= count) return;
  const auto total = [&](int at) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += of_warp[w][at];
    return all;
  };
  float value = total(lane);
  if constexpr (kSwiglu)
    value = few::silu(few::rounded(value)) * few::rounded(total(lane + kRowsOfStage));
  write(output + lane, narrow<bfloat16>(value));
}

// The outputs begin..end-1 of a product of `k` columns whose x is in shared memory. The reads of a
// stage are on their way while the stage before is multiplied.
template <bool kSwiglu, class Write>
__device__ __forceinline__ void multiply(int k, int begin, int end, const bfloat16* x,
                                         TileSums& sums, Stages& stages, const Write& write) {
  float sum[2][4] = {};
  int buffer = 0;
  const auto count_of = [&](int output) { return min(kTile<kSwiglu>, end - output); };
  const auto low_of = [](int count) { return half_of_tile(false, kSwiglu, 0, count, 0).rows; };
  const auto high_of = [](int count) { return half_of_tile(true, kSwiglu, 0, count, 0).rows; };
  const auto finish = [&](int output, int count) {
    finish_tile<kSwiglu>(sum, sums[buffer], output, count, write);
    buffer ^= 1;
  };
  Weights low, high;
  Inputs inputs;
  // A lane keeps its numbers of x for all tiles.
  if (k == kStage) {
    inputs.read<true>(x, kStage);
    stages.take<true>(low, low_of(count_of(begin)), kStage);
    for (int output = begin; output < end; output += kTile<kSwiglu>) {
      const int count = count_of(output), next = output + kTile<kSwiglu>;
      // Only the last tile may have no high rows.
      if (high_of(count) > 0) {
        stages.take<true>(high, high_of(count), kStage);
        stages.multiply(sum[0], low, inputs);
        if (next < end) stages.take<true>(low, low_of(count_of(next)), kStage);
        stages.multiply(sum[1], high, inputs);
      } else {
        stages.multiply(sum[0], low, inputs);
      }
      finish(output, count);
    }
    return;
  }
  for (int output = begin; output < end; output += kTile<kSwiglu>) {
    const int count = count_of(output);
    stages.take<false>(low, low_of(count), k);
    for (int column = 0; column < k; column += kStage) {
      const int columns = k - column, next = columns - kStage;
      inputs.read<false>(x + column, columns);
      if (high_of(count) > 0) {
        stages.take<false>(high, high_of(count), columns);
        stages.multiply(sum[0], low, inputs);
        if (next > 0) stages.take<false>(low, low_of(count), next);
        stages.multiply(sum[1], high, inputs);
      } else {
        stages.multiply(sum[0], low, inputs);
        if (next > 0) stages.take<false>(low, low_of(count), next);
      }
    }
    finish(output, count);
  }
}

#endif

}  // namespace llamaforge::cuda::chain

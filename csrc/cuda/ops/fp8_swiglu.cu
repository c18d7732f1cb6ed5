// SwiGLU for fp8 products (see ops.def; swiglu.cu has the formulas). Forward gives the largest
// number of its result, and the bound of backward's factors, along with the result. Backward writes
// its result in fp8 at once: 6 bytes read and 4 written for a gate and its up, where bf16 and a
// cast of its own would take 18.
#include <cuda_runtime.h>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/fp8.cuh"

namespace llamaforge::cuda {

namespace {

// Beyond this value silu is flat or equals its argument (as in swiglu.cu).
constexpr float kFlatSilu = 200;

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ __forceinline__ uint32_t size_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

constexpr int kAtOnce = 2;  // vectors per thread and round

__global__ void __launch_bounds__(kThreads)
    forward_kernel(const bfloat16* __restrict__ gate_up, bfloat16* __restrict__ y, uint32_t vectors,
                   uint32_t per_row, float* __restrict__ maximum, float* __restrict__ slope) {
  uint32_t largest = 0,
           steepest = 0;  // bits of floats that are not negative: larger bits, larger float
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < vectors; i += kAtOnce * step) {
    uint4 gates[kAtOnce], ups[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const uint32_t at = i + k * step, row = at / per_row, column = (at - row * per_row) * 8;
      const bool exists = at < vectors;
      const bfloat16* gate = gate_up + int64_t{row} * 16 * per_row + column;
      gates[k] = exists ? *reinterpret_cast<const uint4*>(gate) : make_uint4(0, 0, 0, 0);
      ups[k] =
          exists ? *reinterpret_cast<const uint4*>(gate + 8 * per_row) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      float g[8], u[8];
      load(reinterpret_cast<const bfloat16*>(&gates[k]), g);
      load(reinterpret_cast<const bfloat16*>(&ups[k]), u);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float low = at_least(g[j], -kFlatSilu), silu = low * sigmoid(low);
        steepest = max(steepest, max(size_bits(silu), size_bits(kSteepestSilu * u[j])));
        u[j] *= silu;
      }
      uint4 out;
      store(reinterpret_cast<bfloat16*>(&out), u);
      const uint32_t words[4] = {out.x, out.y, out.z, out.w};
#pragma unroll
      for (const uint32_t word : words) largest = __vmaxu2(largest, word & 0x7fff7fffu);
      if (i + k * step < vectors) *reinterpret_cast<uint4*>(y + int64_t{i + k * step} * 8) = out;
    }
  }
  const auto larger = [](uint32_t a, uint32_t b) { return max(a, b); };
  const uint32_t of_block = block_reduce(max(largest & 0xffffu, largest >> 16), 0u, larger);
  const uint32_t slope_of_block = block_reduce(steepest, 0u, larger);
  if (threadIdx.x == 0) {
    raise(maximum, __uint_as_float(of_block << 16));
    raise(slope, __uint_as_float(slope_of_block));
  }
}

// A block makes two tiles: d_gate and, `ffn` columns further right, d_up.
template <bool kWideRange>
__global__ void __launch_bounds__(kTileThreads, 2)
    backward_kernel(const bfloat16* __restrict__ dy, const float* __restrict__ dy_maximum,
                    const bfloat16* __restrict__ gate_up, const float* __restrict__ slope,
                    uint8_t* __restrict__ rows, uint8_t* __restrict__ columns,
                    float* __restrict__ scale, int64_t row_count, int ffn, int64_t padded,
                    int tiles_across) {
  __shared__ uint4 shared[2 * kTileWords / 4];
  auto* gate_tile = reinterpret_cast<uint32_t*>(shared);
  uint32_t* up_tile = gate_tile + kTileWords;
  const TilePlace place;
  const int64_t row0 = int64_t{blockIdx.x / tiles_across} * kTile;
  const int column0 = static_cast<int>(blockIdx.x % tiles_across) * kTile,
            column = column0 + place.columns * 8;
  const float multiplier = fp8_multiplier(*dy_maximum * *slope,
                                          kWideRange ? kLargestExponentE5M2 : kLargestExponentE4M3);
  if (blockIdx.x == 0 && threadIdx.x == 0) *scale = 1.0f / multiplier;
#pragma unroll
  for (int round = 0; round < kTileRounds; ++round) {
    const int quad = round * 16 + place.quad;
    uint4 gradients[4], gates[4], ups[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = row0 + quad * 4 + i;
      const bool exists = row < row_count && column < ffn;
      const bfloat16* gate = gate_up + row * 2 * ffn + column;
      gradients[i] = exists ? *reinterpret_cast<const uint4*>(dy + row * ffn + column)
                            : make_uint4(0, 0, 0, 0);
      gates[i] = exists ? *reinterpret_cast<const uint4*>(gate) : make_uint4(0, 0, 0, 0);
      ups[i] = exists ? *reinterpret_cast<const uint4*>(gate + ffn) : make_uint4(0, 0, 0, 0);
    }
    float d_gate[4][8], d_up[4][8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float g[8];
      load(reinterpret_cast<const bfloat16*>(&gradients[i]), d_gate[i]);
      load(reinterpret_cast<const bfloat16*>(&gates[i]), g);
      load(reinterpret_cast<const bfloat16*>(&ups[i]), d_up[i]);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float low = at_least(g[k], -kFlatSilu), s = sigmoid(low),
                    gradient = d_gate[i][k] * multiplier;
        d_gate[i][k] = gradient * d_up[i][k] * s * (1.0f + at_most(low, kFlatSilu) * (1.0f - s));
        d_up[i][k] = gradient * low * s;
      }
    }
    uint8_t* to = column < ffn ? rows : nullptr;
    put_quad<kWideRange>(d_gate, gate_tile, to, row0 + quad * 4, row_count, column, 2 * ffn,
                         place.columns, quad);
    put_quad<kWideRange>(d_up, up_tile, to ? to + ffn : nullptr, row0 + quad * 4, row_count, column,
                         2 * ffn, place.columns, quad);
  }
  if (!columns) return;
  __syncthreads();
  put_columns(gate_tile, columns, column0, ffn - column0, row0, padded);
  put_columns(up_tile, columns + int64_t{ffn} * padded, column0, ffn - column0, row0, padded);
}

}  // namespace

void fp8_swiglu_forward(Stream& stream, In gate_up, Out y, Out maximum, Out slope) {
  CudaStream& cuda = on_cuda(stream);
  const SwigluSize size = check_fp8_swiglu_forward(gate_up, y, maximum, slope);
  LF_CHECK(size.ffn % 8 == 0 && aligned16({gate_up.raw(), y.raw()}),
           "expected rows of y that are multiples of 8 numbers and start at multiples of 16 bytes");
  for (const Tensor* number :
       {static_cast<const Tensor*>(&maximum), static_cast<const Tensor*>(&slope)}) {
    LF_CUDA_CHECK(cudaMemsetAsync(number->raw(), 0, sizeof(float), cuda.compute()));
  }
  const int64_t vectors = size.rows * size.ffn / 8;
  LF_CHECK(vectors < INT32_MAX, "a tensor of shape {} is too large", to_string(gate_up.shape));
  forward_kernel<<<blocks_for(cuda, vectors, kThreads * kAtOnce), kThreads, 0, cuda.compute()>>>(
      gate_up.data<bfloat16>(), y.data<bfloat16>(), static_cast<uint32_t>(vectors),
      static_cast<uint32_t>(size.ffn / 8), maximum.data<float>(), slope.data<float>());
  check_launch();
}

void fp8_swiglu_backward(Stream& stream, In dy, In dy_maximum, In gate_up, In slope,
                         std::optional<Out> rows, std::optional<Out> columns, Out scale) {
  CudaStream& cuda = on_cuda(stream);
  const Fp8Size size =
      check_fp8_swiglu_backward(dy, dy_maximum, gate_up, slope, rows, columns, scale);
  check_fp8_device(cuda);
  LF_CHECK(aligned16({dy.raw(), gate_up.raw(), rows ? rows->raw() : nullptr,
                      columns ? columns->raw() : nullptr}),
           "expected tensors that start at multiples of 16 bytes");
  const int64_t ffn = size.columns / 2, across = (ffn + kTile - 1) / kTile,
                down = (size.rows + kTile - 1) / kTile;
  LF_CHECK(across * down <= INT32_MAX, "a tensor of shape {} is too large",
           to_string(gate_up.shape));
  const auto kernel = size.format == DType::f8e5m2 ? backward_kernel<true> : backward_kernel<false>;
  kernel<<<static_cast<unsigned>(across * down), kTileThreads, 0, cuda.compute()>>>(
      dy.data<bfloat16>(), dy_maximum.data<float>(), gate_up.data<bfloat16>(), slope.data<float>(),
      rows ? static_cast<uint8_t*>(rows->raw()) : nullptr,
      columns ? static_cast<uint8_t*>(columns->raw()) : nullptr, scale.data<float>(), size.rows,
      static_cast<int>(ffn), size.padded, static_cast<int>(across));
  check_launch();
}

}  // namespace llamaforge::cuda

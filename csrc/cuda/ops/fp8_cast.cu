// Tensors in fp8: the largest number of a tensor, and its cast (see ops.def). Floors: maximum reads
// the bf16 tensor once (2 bytes a number); the cast reads it once and writes rows and columns (4).
#include <cuda_runtime.h>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/fp8.cuh"

namespace llamaforge::cuda {

namespace {

constexpr int kAtOnce = 4;  // vectors in flight

// Maxima of |x| two at a time, on the bits without their signs; NaN wins.
__global__ void __launch_bounds__(kThreads)
    maximum_kernel(const uint4* x, int64_t vectors, const uint16_t* rest, int rest_count,
                   float* maximum) {
  uint32_t largest = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < vectors; i += kAtOnce * step) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      v[k] = i + k * step < vectors ? x[i + k * step] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const uint32_t words[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
      for (const uint32_t word : words) largest = __vmaxu2(largest, word & 0x7fff7fffu);
    }
  }
  uint32_t bits = max(largest & 0xffffu, largest >> 16);
  if (blockIdx.x == 0 && static_cast<int>(threadIdx.x) < rest_count)
    bits = max(bits, rest[threadIdx.x] & 0x7fffu);
  const auto larger = [](uint32_t a, uint32_t b) { return max(a, b); };
  bits = block_reduce(bits, 0u, larger);
  if (threadIdx.x == 0) raise(maximum, __uint_as_float(bits << 16));
}

template <bool kWideRange>
__global__ void __launch_bounds__(kTileThreads)
    cast_kernel(const bfloat16* __restrict__ x, const float* __restrict__ maximum,
                uint8_t* __restrict__ rows, uint8_t* __restrict__ columns,
                float* __restrict__ scale, int64_t row_count, int column_count, int64_t padded,
                int tiles_across) {
  __shared__ uint4 shared[kTileWords / 4];
  auto* tile = reinterpret_cast<uint32_t*>(shared);
  const TilePlace place;
  const int64_t row0 = int64_t{blockIdx.x / tiles_across} * kTile;
  const int column0 = static_cast<int>(blockIdx.x % tiles_across) * kTile,
            column = column0 + place.columns * 8;
  uint4 in[kTileRounds][4];
#pragma unroll
  for (int round = 0; round < kTileRounds; ++round) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = row0 + round * 64 + place.quad * 4 + i;
      in[round][i] = row < row_count && column < column_count
                         ? *reinterpret_cast<const uint4*>(x + row * column_count + column)
                         : make_uint4(0, 0, 0, 0);
    }
  }
  const float multiplier =
      fp8_multiplier(*maximum, kWideRange ? kLargestExponentE5M2 : kLargestExponentE4M3);
  if (blockIdx.x == 0 && threadIdx.x == 0) *scale = 1.0f / multiplier;
#pragma unroll
  for (int round = 0; round < kTileRounds; ++round) {
    float v[4][8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load(reinterpret_cast<const bfloat16*>(&in[round][i]), v[i]);
#pragma unroll
      for (int k = 0; k < 8; ++k) v[i][k] *= multiplier;
    }
    const int quad = round * 16 + place.quad;
    put_quad<kWideRange>(v, tile, column < column_count ? rows : nullptr, row0 + quad * 4,
                         row_count, column, column_count, place.columns, quad);
  }
  if (!columns) return;
  __syncthreads();
  put_columns(tile, columns, column0, column_count - column0, row0, padded);
}

}  // namespace

void fp8_maximum(Stream& stream, In x, Out maximum) {
  CudaStream& cuda = on_cuda(stream);
  check_fp8_maximum(x, maximum);
  LF_CUDA_CHECK(cudaMemsetAsync(maximum.raw(), 0, sizeof(float), cuda.compute()));
  const int64_t n = x.numel();
  // Views may start at any element; without alignment all of them are read one by one.
  const bool aligned = aligned16({x.raw()});
  const int64_t vectors = aligned ? n / 8 : 0, rest = n - 8 * vectors;
  LF_CHECK(rest <= kThreads, "expected x to start at a multiple of 16 bytes");
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(
      (vectors + kThreads * kAtOnce - 1) / (kThreads * kAtOnce), 1, cuda.multiprocessors() * 8));
  maximum_kernel<<<blocks, kThreads, 0, cuda.compute()>>>(
      static_cast<const uint4*>(x.raw()), vectors,
      static_cast<const uint16_t*>(x.raw()) + 8 * vectors, static_cast<int>(rest),
      maximum.data<float>());
  check_launch();
}

void fp8_cast(Stream& stream, In x, In maximum, std::optional<Out> rows, std::optional<Out> columns,
              Out scale) {
  CudaStream& cuda = on_cuda(stream);
  const Fp8Size size = check_fp8_cast(x, maximum, rows, columns, scale);
  check_fp8_device(cuda);
  LF_CHECK(aligned16({x.raw(), rows ? rows->raw() : nullptr, columns ? columns->raw() : nullptr}),
           "expected tensors that start at multiples of 16 bytes");
  const int64_t across = (size.columns + kTile - 1) / kTile, down = (size.rows + kTile - 1) / kTile;
  LF_CHECK(across * down <= INT32_MAX, "a tensor of shape {} is too large", to_string(x.shape));
  const auto kernel = size.format == DType::f8e5m2 ? cast_kernel<true> : cast_kernel<false>;
  kernel<<<static_cast<unsigned>(across * down), kTileThreads, 0, cuda.compute()>>>(
      x.data<bfloat16>(), maximum.data<float>(),
      rows ? static_cast<uint8_t*>(rows->raw()) : nullptr,
      columns ? static_cast<uint8_t*>(columns->raw()) : nullptr, scale.data<float>(), size.rows,
      static_cast<int>(size.columns), size.padded, static_cast<int>(across));
  check_launch();
}

}  // namespace llamaforge::cuda

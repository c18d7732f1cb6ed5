// RMSNorm with its result in fp8 (see ops.def; rms_norm.cu has the formula). The bound of a normed
// row is known before the row: |x| · rstd <= sqrt(D), so no pass looks for the largest number, and
// nothing is written in bf16. Floor of the add form: 6 bytes read and written for r, 2 for rows and
// columns.
//
// A block has 32 rows. A warp keeps a row in registers, as in rms_norm.cu, and leaves its 8 bits in
// shared memory; the block then writes the transpose, 32 bytes of a column together. Rows too long
// for that are normed in bf16 and cast.
#include <cfloat>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/fp8.cuh"

namespace llamaforge::cuda {

namespace {

constexpr int kWarps = 8, kBlock = 32 * kWarps, kRows = 32;

// The bound of the normed rows: sqrt(columns) · max|weight|. Every thread gets it.
__device__ __forceinline__ float bound_of(const bfloat16* weight, int columns) {
  float largest = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x)
    largest = Maximum{}(largest, fabsf(widen(weight[i])));
  return block_max(largest) * sqrtf(static_cast<float>(columns));
}

// Squares beyond the range of f32, or below it, are summed again in double (as in rms_norm.cu).
__device__ __forceinline__ bool sure(float mean) { return mean >= 1e-30f && mean <= FLT_MAX; }

template <int kVectors, bool kAdd>
__global__ void __launch_bounds__(kBlock)
    norm_kernel(const bfloat16* __restrict__ x, const bfloat16* __restrict__ skip,
                const bfloat16* __restrict__ weight, bfloat16* __restrict__ r,
                uint8_t* __restrict__ rows, uint8_t* __restrict__ columns,
                float* __restrict__ scale, float* __restrict__ rstd, int64_t row_count,
                int column_count, int64_t padded, float eps) {
  extern __shared__ uint4 shared[];
  auto* kept = reinterpret_cast<uint32_t*>(shared);  // 8 bits of (kRows, columns)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int vectors = column_count / 8, words = column_count / 4;
  const int64_t row0 = int64_t{blockIdx.x} * kRows;
  const float multiplier = fp8_multiplier(bound_of(weight, column_count), kLargestExponentE4M3);
  if (blockIdx.x == 0 && threadIdx.x == 0) *scale = 1.0f / multiplier;
  for (int at = warp; at < kRows; at += kWarps) {
    const int64_t row = row0 + at, start = row * column_count;
    // Words of the second half of the rows are swapped by groups of 16, so that both halves of a
    // column are read without bank conflicts.
    uint32_t* to = kept + at * words;
    const int swap = at / 16 * 16;
    if (row >= row_count) {
      for (int i = lane; i < words; i += 32) to[i] = 0;
      continue;
    }
    uint4 values[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = lane + 32 * i;
      values[i] =
          v < vectors ? *reinterpret_cast<const uint4*>(x + start + v * 8) : make_uint4(0, 0, 0, 0);
    }
    if constexpr (kAdd) {
      uint4 added[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int v = lane + 32 * i;
        added[i] = v < vectors ? *reinterpret_cast<const uint4*>(skip + start + v * 8)
                               : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float a[8], b[8];
        load(reinterpret_cast<const bfloat16*>(&values[i]), a);
        load(reinterpret_cast<const bfloat16*>(&added[i]), b);
#pragma unroll
        for (int k = 0; k < 8; ++k) a[k] += b[k];
        store(reinterpret_cast<bfloat16*>(&values[i]), a);
        if (lane + 32 * i < vectors)
          *reinterpret_cast<uint4*>(r + start + (lane + 32 * i) * 8) = values[i];
      }
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float v[8];
      load(reinterpret_cast<const bfloat16*>(&values[i]), v);
#pragma unroll
      for (int k = 0; k < 8; ++k) squares += v[k] * v[k];
    }
    const float mean = warp_sum(squares) / static_cast<float>(column_count) + eps;
    float factor = 1.0f / sqrtf(mean);
    if (!sure(mean)) {
      double wide = 0;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float v[8];
        load(reinterpret_cast<const bfloat16*>(&values[i]), v);
#pragma unroll
        for (int k = 0; k < 8; ++k) wide += double{v[k]} * v[k];
      }
      factor =
          static_cast<float>(1.0 / sqrt(warp_sum(wide) / static_cast<double>(column_count) + eps));
    }
    if (lane == 0) rstd[row] = factor;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = lane + 32 * i;
      if (v >= vectors) break;
      float a[8], w[8];
      load(reinterpret_cast<const bfloat16*>(&values[i]), a);
      load(weight + v * 8, w);
#pragma unroll
      for (int k = 0; k < 8; ++k) a[k] = a[k] * factor * w[k] * multiplier;
      const uint2 bits = make_uint2(fp8_word<false>(a[0], a[1], a[2], a[3]),
                                    fp8_word<false>(a[4], a[5], a[6], a[7]));
      if (rows) *reinterpret_cast<uint2*>(rows + start + v * 8) = bits;
      *reinterpret_cast<uint2*>(to + ((2 * v) ^ swap)) = bits;
    }
  }
  if (!columns) return;
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * words; i += kBlock) {
    const int half = i % 2, word = i / 2;
    if (row0 + half * 16 >= padded) continue;
    uint32_t out[4][4];  // columns of the word, groups of 4 rows
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      uint32_t quad[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        quad[k] = kept[(half * 16 + group * 4 + k) * words + (word ^ half * 16)];
      transpose_bytes(quad);
#pragma unroll
      for (int k = 0; k < 4; ++k) out[k][group] = quad[k];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      *reinterpret_cast<uint4*>(columns + (int64_t{word} * 4 + k) * padded + row0 + half * 16) =
          make_uint4(out[k][0], out[k][1], out[k][2], out[k][3]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    bound_kernel(const bfloat16* weight, int columns, float* bound) {
  const float result = bound_of(weight, columns);
  if (threadIdx.x == 0) *bound = result;
}

template <int kVectors, bool kAdd>
void launch(CudaStream& cuda, const Fp8Size& size, const bfloat16* x, const bfloat16* skip,
            const bfloat16* weight, bfloat16* r, uint8_t* rows, uint8_t* columns, float* scale,
            float* rstd, float eps) {
  const auto kernel = norm_kernel<kVectors, kAdd>;
  const int bytes = static_cast<int>(size.columns) * kRows;
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const auto blocks = static_cast<unsigned>((size.rows + kRows - 1) / kRows);
  kernel<<<blocks, kBlock, static_cast<size_t>(bytes), cuda.compute()>>>(
      x, skip, weight, r, rows, columns, scale, rstd, size.rows, static_cast<int>(size.columns),
      size.padded, eps);
  check_launch();
}

}  // namespace

void fp8_rms_norm_forward(Stream& stream, In x, std::optional<In> skip, In weight,
                          std::optional<Out> r, std::optional<Out> rows, std::optional<Out> columns,
                          Out scale, Out rstd, double eps) {
  CudaStream& cuda = on_cuda(stream);
  const Fp8Size size = check_fp8_rms_norm(x, skip, weight, r, rows, columns, scale, rstd);
  check_fp8_device(cuda);
  auto* row_bits = rows ? static_cast<uint8_t*>(rows->raw()) : nullptr;
  auto* column_bits = columns ? static_cast<uint8_t*>(columns->raw()) : nullptr;
  LF_CHECK(aligned16({row_bits, column_bits}),
           "expected tensors that start at multiples of 16 bytes");
  const int64_t vectors = size.columns / 8;
  // The swapped groups of 16 words need rows of whole pairs of them.
  const bool in_registers =
      vectors <= 512 && size.columns % 128 == 0 &&
      aligned16({x.raw(), skip ? skip->raw() : nullptr, r ? r->raw() : nullptr, weight.raw()});
  if (!in_registers) {
    Out normed, bound;
    const auto fresh = [&](Out& tensor, const Shape& shape, DType dtype) {
      static_cast<Tensor&>(tensor) = {nullptr, 0, shape, dtype};
      tensor.storage = std::make_shared<Storage>(x.storage->shared_stream(), tensor.bytes());
      tensor.storage->allocate();
    };
    fresh(normed, x.shape, DType::bf16);
    fresh(bound, {1}, DType::f32);
    skip ? add_rms_norm_forward(stream, x, *skip, weight, *r, normed, rstd, eps)
         : rms_norm_forward(stream, x, weight, normed, rstd, eps);
    bound_kernel<<<1, kThreads, 0, cuda.compute()>>>(
        weight.data<bfloat16>(), static_cast<int>(size.columns), bound.data<float>());
    check_launch();
    In normed_in, bound_in;
    static_cast<Tensor&>(normed_in) = normed;
    static_cast<Tensor&>(bound_in) = bound;
    return fp8_cast(stream, normed_in, bound_in, rows, columns, scale);
  }
  const auto run = [&]<int kVectors, bool kAdd>() {
    launch<kVectors, kAdd>(cuda, size, x.data<bfloat16>(), skip ? skip->data<bfloat16>() : nullptr,
                           weight.data<bfloat16>(), r ? r->data<bfloat16>() : nullptr, row_bits,
                           column_bits, scale.data<float>(), rstd.data<float>(),
                           static_cast<float>(eps));
  };
  const auto with_add = [&]<int kVectors>() {
    skip ? run.template operator()<kVectors, true>() : run.template operator()<kVectors, false>();
  };
  if (vectors <= 64) return with_add.template operator()<2>();
  if (vectors <= 256) return with_add.template operator()<8>();
  with_add.template operator()<16>();
}

}  // namespace llamaforge::cuda

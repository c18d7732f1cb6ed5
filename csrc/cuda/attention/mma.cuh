// mma.sync, ldmatrix and cp.async (PTX ISA, sm_80 and up), and tiles of bf16 rows in shared memory
// for them.
//
// A warp's accumulator of (16, 8) is d[4]: lane l holds in d[2h + c] row l / 4 + 8h, column 2 (l %
// 4) + c. Two neighbouring accumulators, rounded, are the A operand (16, 16) of the next product.
#pragma once

#include <cstdint>

#include "runtime/dtype.h"

namespace llamaforge::cuda::mma {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// d (16,8) += a (16,16) · b (16,8)
__device__ __forceinline__ void multiply(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

// Copies 16 bytes to shared memory asynchronously, or writes zeros if not `inside`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Rows of kColumns bf16, each padded by 16 bytes so that eight rows at one column fall into
// different banks.
template <int kRows, int kColumns>
struct Tile {
  static constexpr int kStride = kColumns + 8;
  bfloat16 data[kRows * kStride];

  __device__ __forceinline__ const bfloat16* at(int row, int column) const {
    return data + row * kStride + column;
  }

  // Rows first.. of a tensor whose rows are `stride` elements apart; zeros beyond `rows` and
  // `columns`.
  template <int kThreads>
  __device__ __forceinline__ void fetch(const bfloat16* from, size_t stride, int first, int rows,
                                        int columns) {
    for (int i = threadIdx.x; i < kRows * (kColumns / 8); i += kThreads) {
      const int row = i / (kColumns / 8), column = i % (kColumns / 8) * 8;
      const bool inside = first + row < rows && column < columns;
      copy_async(data + row * kStride + column,
                 inside ? from + (first + row) * stride + column : from, inside);
    }
  }
};

// s (16, kKeys) += rows (16 of `a` from `row`, kHead) · tile (kKeys, kHead)ᵀ
template <int kKeys, int kHead, int kRows>
__device__ __forceinline__ void multiply_rows(float (&s)[kKeys / 8][4], const Tile<kRows, kHead>& a,
                                              int row, const Tile<kKeys, kHead>& tile) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kHead; k += 16) {
    uint32_t left[4];
    load_matrices(left, a.at(row + lane % 16, k + lane / 16 * 8));
#pragma unroll
    for (int n = 0; n < kKeys; n += 16) {
      uint32_t right[4];
      load_matrices(right, tile.at(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
      multiply(s[n / 8], left, right[0], right[1]);
      multiply(s[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

// sum (16, kHead) += p (16, kKeys) · tile (kKeys, kHead), p rounded to bf16
template <int kKeys, int kHead>
__device__ __forceinline__ void multiply_columns(float (&sum)[kHead / 8][4],
                                                 const float (&p)[kKeys / 8][4],
                                                 const Tile<kKeys, kHead>& tile) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kKeys; k += 16) {
    const float *low = p[k / 8], *high = p[k / 8 + 1];
    const uint32_t left[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                              pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kHead; n += 16) {
      uint32_t right[4];
      load_matrices_transposed(right, tile.at(k + lane % 16, n + lane / 16 * 8));
      multiply(sum[n / 8], left, right[0], right[1]);
      multiply(sum[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

// Writes two rows of a (16, kHead) accumulator as bf16, each times its factor; columns beyond
// `columns` are left out.
template <int kHead>
__device__ __forceinline__ void write_rows(const float (&sum)[kHead / 8][4],
                                           const float (&factor)[2], bfloat16* to, size_t stride,
                                           int row, int rows, int columns) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = row + lane / 4 + 8 * h;
    if (r >= rows) continue;
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      if (8 * n < columns) {
        *reinterpret_cast<uint32_t*>(to + r * stride + 8 * n + lane % 4 * 2) =
            pack_bf16(sum[n][2 * h] * factor[h], sum[n][2 * h + 1] * factor[h]);
      }
    }
  }
}

}  // namespace llamaforge::cuda::mma

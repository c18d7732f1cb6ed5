// Tiles of numbers that become fp8, as rows and as columns.
//
// A block has a tile of 128 rows and 128 columns of numbers. A thread makes 8 neighbouring columns
// of 4 neighbouring rows, twice: 32 bits hold four rows of a column after a transposition of bytes
// in registers. The tile's transpose goes through 16 KB of shared memory, without bank conflicts,
// so that rows and columns are both written in runs of 128 bytes.
#pragma once

#include "cuda/runtime/launch.h"
#include "ops/checks/fp8.h"

namespace llamaforge::cuda {

// Refuses GPUs whose tensor cores lack fp8.
inline void check_fp8_device(const CudaStream& cuda) {
  if (cuda.compute_capability() >= 89) return;
  throw Error(
      "ERR_DEVICE",
      format("cuda:{} has compute capability {}.{}, and fp8 needs 8.9 or newer (Ada, Hopper): use "
             "precision bf16",
             cuda.index(), cuda.compute_capability() / 10, cuda.compute_capability() % 10));
}

inline int largest_exponent(DType format) {
  return format == DType::f8e4m3 ? kLargestExponentE4M3 : kLargestExponentE5M2;
}

#ifdef __CUDACC__

constexpr int kTile = 128;                     // rows and columns
constexpr int kTileThreads = 256;              // 16 groups of 8 columns, 16 groups of 4 rows
constexpr int kTileRounds = kTile / 64;        // a round makes 64 rows
constexpr int kTileWords = kTile * kTile / 4;  // of shared memory

// Rounds to nearest even; beyond the largest number is the largest. `a` is in the lowest byte.
template <bool kWideRange>
__device__ __forceinline__ uint32_t fp8_word(float a, float b, float c, float d) {
  uint32_t word = 0;
#if __CUDA_ARCH__ >= 890
  uint16_t low, high;
  if constexpr (kWideRange) {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  } else {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  }
  word = low | static_cast<uint32_t>(high) << 16;
#endif
  return word;
}

// Transposes a matrix of 4 x 4 bytes: word i becomes byte i of every word.
__device__ __forceinline__ void transpose_bytes(uint32_t (&word)[4]) {
  const uint32_t a = __byte_perm(word[0], word[1], 0x5140),
                 b = __byte_perm(word[0], word[1], 0x7362);
  const uint32_t c = __byte_perm(word[2], word[3], 0x5140),
                 d = __byte_perm(word[2], word[3], 0x7362);
  word[0] = __byte_perm(a, c, 0x5410), word[1] = __byte_perm(a, c, 0x7632);
  word[2] = __byte_perm(b, d, 0x5410), word[3] = __byte_perm(b, d, 0x7632);
}

// Where a thread stands in a tile.
struct TilePlace {
  int columns = threadIdx.x % 16, quad = threadIdx.x / 16;  // groups of 8 columns, of 4 rows
};

// Takes 4 rows of 8 columns of a tile: writes them to rows (N,D) at row `row` and column `column`,
// and to the shared tile as group `quad` of 32.
template <bool kWideRange>
__device__ __forceinline__ void put_quad(const float (&x)[4][8], uint32_t* tile, uint8_t* rows,
                                         int64_t row, int64_t row_count, int64_t column,
                                         int64_t stride, int group, int quad) {
  uint32_t low[4], high[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    low[i] = fp8_word<kWideRange>(x[i][0], x[i][1], x[i][2], x[i][3]);
    high[i] = fp8_word<kWideRange>(x[i][4], x[i][5], x[i][6], x[i][7]);
    if (rows && row + i < row_count) {
      *reinterpret_cast<uint2*>(rows + (row + i) * stride + column) = make_uint2(low[i], high[i]);
    }
  }
  transpose_bytes(low);
  transpose_bytes(high);
  // A word's place within its column is swizzled by the column's group: 32 lanes write to 32 banks.
  uint32_t* at = tile + group * 8 * 32 + (quad ^ 2 * group);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    at[j * 32] = low[j];
    at[(j + 4) * 32] = high[j];
  }
}

// Writes a shared tile to columns (D,N'): `column` and `row` are the tile's first ones, of which
// `column_count` columns and rows up to `padded` exist.
__device__ __forceinline__ void put_columns(const uint32_t* tile, uint8_t* columns, int64_t column,
                                            int column_count, int64_t row, int64_t padded) {
  const int part = threadIdx.x % 8;  // 16 rows each
  if (row + part * 16 >= padded) return;
#pragma unroll
  for (int i = 0; i < kTile / 32; ++i) {
    const int at = threadIdx.x / 8 + i * 32, group = at / 8;
    if (at >= column_count) return;
    uint4 words = *reinterpret_cast<const uint4*>(tile + at * 32 + 4 * (part ^ group / 2));
    if (group % 2) words = make_uint4(words.z, words.w, words.x, words.y);
    *reinterpret_cast<uint4*>(columns + (column + at) * padded + row + part * 16) = words;
  }
}

// Raises a float that is not negative, in memory that all blocks share. NaN, whose bits are the
// largest, wins.
__device__ __forceinline__ void raise(float* maximum, float x) {
  atomicMax(reinterpret_cast<unsigned*>(maximum), __float_as_uint(x) & 0x7fffffffu);
}

#endif  // __CUDACC__

}  // namespace llamaforge::cuda

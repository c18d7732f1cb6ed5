// Random tensors, bit for bit those of the CPU (csrc/cpu/philox.cpp): element i depends on seed and offset + i alone,
// every operation is rounded once (the _rn intrinsics forbid the compiler to fuse), logarithm and sine are polynomials
// of our own. A thread makes two blocks of four elements at a time and writes each element once. The arithmetic is the
// limit: a block's 20 products of 64 bits and 20 exclusive ors, and for normal numbers some 100 instructions more.
#include "cuda/philox.h"

#include <cmath>
#include <limits>

#include "cuda/cuda_ops.h"
#include "cuda/pack.h"

namespace llamaforge::cuda {

namespace {

__device__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// In (0, 1]: 31 bits and a half, so that the logarithm is finite.
__device__ float open_unit(uint32_t word) { return fused(__int2float_rn(word >> 1), 0x1p-31f, 0x1p-32f); }

// In [0, 1), 24 bits.
__device__ float unit(uint32_t word) { return __fmul_rn(__int2float_rn(word >> 8), 0x1p-24f); }

// −ln x for normal x in (0, 1]; Cephes' polynomial on [√½, √2).
__device__ float negative_log(float x) {
  const uint32_t shifted = __float_as_uint(x) - 0x3f3504f3u;
  const uint32_t exponent = shifted & 0xff800000u;  // as an integer 2^23 times that of x: exact as a float too
  const float m = __fadd_rn(__uint_as_float(__float_as_uint(x) - exponent), -1.0f);
  float y = 7.0376836292e-2f;
  y = fused(y, m, -1.1514610310e-1f);
  y = fused(y, m, 1.1676998740e-1f);
  y = fused(y, m, -1.2420140846e-1f);
  y = fused(y, m, 1.4249322787e-1f);
  y = fused(y, m, -1.6668057665e-1f);
  y = fused(y, m, 2.0000714765e-1f);
  y = fused(y, m, -2.4999993993e-1f);
  y = fused(y, m, 3.3333331174e-1f);
  y = fused(y, m, -0.5f);
  y = fused(y, __fmul_rn(m, m), m);
  return -fused(__int2float_rn(static_cast<int32_t>(exponent)), 0.693147181f * 0x1p-23f, y);
}

// √x, correctly rounded, for x of 0 or of at least 2^-60: the instructions that nvcc 13.0 makes of __fsqrt_rn for sm_80 to
// sm_120, without its branch for what is smaller.
__device__ float square_root(float x) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 0x1p-60f)));
  const float root = __fmul_rn(x, inverse);
  return fused(fused(-root, root, x), __fmul_rn(inverse, 0.5f), root);
}

// Of 2π · word / 2^32. The quadrant and the rest come from the integer, without any loss.
__device__ void turn(uint32_t word, float& sine, float& cosine) {
  const uint32_t turned = word + 0x20000000u;  // the quadrant in its two highest bits
  const int32_t rest = static_cast<int32_t>(turned & 0x3fffffffu) - 0x20000000;
  const float angle = __fmul_rn(__int2float_rn(rest), 1.46291807926716e-9f);
  const float square = __fmul_rn(angle, angle);
  float s = -1.9515295891e-4f;
  s = fused(s, square, 8.3321608736e-3f);
  s = fused(s, square, -1.6666654611e-1f);
  s = fused(s, __fmul_rn(square, angle), angle);
  float c = 2.443315711809948e-5f;
  c = fused(c, square, -1.388731625493765e-3f);
  c = fused(c, square, 4.166664568298827e-2f);
  c = fused(c, square, -0.5f);
  c = fused(c, square, 1.0f);
  const bool swapped = (turned & 0x40000000u) != 0;
  sine = __uint_as_float(__float_as_uint(swapped ? c : s) ^ (turned & 0x80000000u));
  cosine = __uint_as_float(__float_as_uint(swapped ? s : c) ^ ((turned + 0x40000000u) & 0x80000000u));
}

struct Normal {
  float mean, std;
  static constexpr PhiloxStream kStream = kNormalStream;
  __device__ void operator()(const PhiloxWords& words, float (&out)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
      const float radius = square_root(__fmul_rn(2.0f, negative_log(open_unit(words.word[pair]))));
      float sine, cosine;
      turn(words.word[pair + 1], sine, cosine);
      out[pair] = fused(std, __fmul_rn(radius, cosine), mean);
      out[pair + 1] = fused(std, __fmul_rn(radius, sine), mean);
    }
  }
};

struct Uniform {
  float low, range, most;
  static constexpr PhiloxStream kStream = kUniformStream;
  __device__ void operator()(const PhiloxWords& words, float (&out)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = fminf(fused(range, unit(words.word[i]), low), most);
    }
  }
};

// The elements of one 16-byte pack, whose first is that of a block.
template <class T, class Values>
__device__ __forceinline__ void make_pack(const PhiloxKeys& keys, uint64_t block, const Values& values, float (&out)[kVector<T>]) {
#pragma unroll
  for (int i = 0; i < kVector<T>; i += 4) {
    values(philox(keys, Values::kStream, block + i / 4), reinterpret_cast<float(&)[4]>(out[i]));
  }
}

// Packs of a thread at a time: two blocks of random words.
template <class T> constexpr int kPacks = 8 / kVector<T>;
template <class T> constexpr int kTile = kThreads * kPacks<T> * kVector<T>;

// `tiles` whole tiles of x, which start on 16 bytes and at block `first`.
template <class T, class Values>
__global__ void __launch_bounds__(kThreads) tiles_kernel(T* x, int64_t tiles, const __grid_constant__ PhiloxKeys keys,
                                                         uint64_t first, Values values) {
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t pack = tile * (kThreads * kPacks<T>) + threadIdx.x;
#pragma unroll
    for (int j = 0; j < kPacks<T>; ++j) {
      float out[kVector<T>];
      make_pack<T>(keys, first + static_cast<uint64_t>(pack + j * kThreads) * (kVector<T> / 4), values, out);
      uint4 bits;
      store(reinterpret_cast<T*>(&bits), out);
      reinterpret_cast<uint4*>(x)[pack + j * kThreads] = bits;
    }
  }
}

// Any number of elements anywhere.
template <class T, class Values>
__global__ void __launch_bounds__(kThreads) elements_kernel(T* x, int64_t n, const __grid_constant__ PhiloxKeys keys,
                                                            int64_t offset, Values values) {
  const int64_t step = int64_t{gridDim.x} * kThreads * kVector<T>;
  // From the start of the first block, which may lie before x.
  for (int64_t start = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector<T> - offset % 4; start < n;
       start += step) {
    float out[kVector<T>];
    make_pack<T>(keys, static_cast<uint64_t>(start + offset) / 4, values, out);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const int64_t at = start + i;
      if (at >= 0 && at < n) x[at] = narrow<T>(out[i]);
    }
  }
}

template <class Values> void generate(Stream& stream, const Tensor& x, int64_t seed, int64_t offset, const Values& values) {
  CudaStream& cuda = on_cuda(stream);
  const PhiloxKeys keys(static_cast<uint64_t>(seed));
  with_float("x", x, [&]<class T>() {
    const int64_t n = x.numel();
    const int64_t tiles = offset % 4 == 0 && aligned16({x.raw()}) ? n / kTile<T> : 0;
    const int64_t done = tiles * kTile<T>;
    if (tiles > 0) {
      tiles_kernel<<<blocks_for(cuda, tiles, 1), kThreads, 0, cuda.compute()>>>(
          x.data<T>(), tiles, keys, static_cast<uint64_t>(offset) / 4, values);
      check_launch();
    }
    if (done < n) {
      elements_kernel<<<blocks_for(cuda, n - done + 3, kThreads * kVector<T>), kThreads, 0, cuda.compute()>>>(
          x.data<T>() + done, n - done, keys, offset + done, values);
      check_launch();
    }
  });
}

void check(const Tensor& x, int64_t offset) {
  check_float("x", x);
  if (offset < 0) throw Error("ERR_ARGUMENT", format("expected offset of at least 0, got {}", offset));
}

// The largest value of the dtype below `high`.
float largest_below(DType dtype, float high) {
  float candidate = std::nextafter(high, -std::numeric_limits<float>::infinity());
  if (dtype == DType::bf16) {
    uint32_t bits;
    std::memcpy(&bits, &candidate, sizeof bits);
    if (candidate < 0) bits += 0xffff;  // away from zero is down
    bits &= 0xffff0000u;
    std::memcpy(&candidate, &bits, sizeof candidate);
  }
  return candidate;
}

}  // namespace

void philox_normal(Stream& stream, Out x, double mean, double std, int64_t seed, int64_t offset) {
  check(x, offset);
  generate(stream, x, seed, offset, Normal{static_cast<float>(mean), static_cast<float>(std)});
}

void philox_uniform(Stream& stream, Out x, double low, double high, int64_t seed, int64_t offset) {
  check(x, offset);
  const float from = static_cast<float>(low), to = static_cast<float>(high);
  if (!(from < to) || !std::isfinite(to - from)) {
    throw Error("ERR_ARGUMENT", format("expected finite low < high, got {} and {}", low, high));
  }
  generate(stream, x, seed, offset, Uniform{from, to - from, largest_below(x.dtype, to)});
}

}  // namespace llamaforge::cuda

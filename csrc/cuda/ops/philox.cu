// Random tensors, bit for bit those of the CPU (csrc/cpu/philox.cpp defines them): element i
// depends on seed and offset + i alone, every operation is rounded once (the _rn intrinsics forbid
// fusing), and logarithm, sine and cosine are polynomials of our own. A thread makes eight blocks
// of four elements and writes each element once. The arithmetic is the limit: a block takes 18
// products of 64 bits and 19 exclusive ors, and normal numbers some 80 instructions more.
#include "cuda/ops/philox.h"

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/random.h"

namespace llamaforge::cuda {

namespace {

__device__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// A uniform number in [0, 1) with 24 bits.
__device__ float unit(uint32_t word) { return __fmul_rn(__int2float_rn(word >> 8), 0x1p-24f); }

// √x, correctly rounded, for x from 2^-60 to 2^60. These are the instructions that nvcc 13.0
// generates from __fsqrt_rn for sm_80 to sm_120, without its branch for other numbers.
__device__ float square_root(float x) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  const float root = __fmul_rn(x, inverse);
  return fused(fused(-root, root, x), __fmul_rn(inverse, 0.5f), root);
}

// √(−2 ln u), u = (word + ½) / 2^32.
__device__ float radius(uint32_t word) {
  const uint32_t bits = __float_as_uint(__fadd_rn(__uint2float_rn(word), 0.5f));
  // exponent: that of u. As an integer it is 2^23 times the exponent, which a float also holds
  // exactly.
  const uint32_t exponent = (bits - 0x4f3504f3u) & 0xff800000u;
  const float m = fused(__uint_as_float(bits - exponent), 0x1p-32f, -1.0f);
  float y = 2.0213795e-1f;
  y = fused(y, m, -3.2445166e-1f);
  y = fused(y, m, 3.450166e-1f);
  y = fused(y, m, -3.980033e-1f);
  y = fused(y, m, 4.9939817e-1f);
  y = fused(y, m, -6.667012e-1f);
  y = fused(y, m, 1.0000073f);
  y = fused(y, m, -1.9999999f);
  const float of_exponent =
      fused(__int2float_rn(static_cast<int32_t>(exponent)), -2 * 0.693147181f * 0x1p-23f, 0x1p-40f);
  return square_root(fused(y, m, of_exponent));
}

// Sine of an angle within a quarter turn to either side, and the size of its cosine.
__device__ void half_turn(uint32_t word, float& sine, float& cosine) {
  const float quarters = __fadd_rn(__uint_as_float((word & 0x007fffffu) | 0x40000001u), -3.0f);
  const float square = __fmul_rn(quarters, quarters);
  float s = 1.5167853e-4f;
  s = fused(s, square, -4.6741576e-3f);
  s = fused(s, square, 7.968993e-2f);
  s = fused(s, square, -6.459638e-1f);
  s = fused(s, square, 1.5707964f);
  sine = __fmul_rn(s, quarters);
  float c = 8.5819064e-4f;
  c = fused(c, square, -2.0810628e-2f);
  c = fused(c, square, 2.5365075e-1f);
  c = fused(c, square, -1.2336982f);
  cosine = fused(c, square, 0.99999994f);
}

struct Normal {
  float mean, std;
  static constexpr PhiloxStream kStream = kNormalStream;
  __device__ void operator()(const PhiloxWords& words, float (&out)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
      const float length = __fmul_rn(radius(words.word[pair]), std);
      float sine, cosine;
      half_turn(words.word[pair + 1], sine, cosine);
      const uint32_t side = words.word[pair + 1] & 0x80000000u;
      out[pair] = fused(__uint_as_float(__float_as_uint(length) ^ side), cosine, mean);
      out[pair + 1] = fused(length, sine, mean);
    }
  }
};

struct Uniform {
  UniformRange numbers;
  static constexpr PhiloxStream kStream = kUniformStream;
  __device__ void operator()(const PhiloxWords& words, float (&out)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out[i] = fminf(fused(numbers.range, unit(words.word[i]), numbers.low), numbers.most);
  }
};

// Makes the elements of one 16-byte pack, whose first element is that of a block.
template <class T, class Values>
__device__ __forceinline__ void make_pack(const PhiloxSequence& sequence, uint32_t block,
                                          const Values& values, float (&out)[kVector<T>]) {
#pragma unroll
  for (int i = 0; i < kVector<T>; i += 4)
    values(sequence(block + i / 4), reinterpret_cast<float(&)[4]>(out[i]));
}

// Packs that a thread makes at a time: eight blocks of random words.
template <class T>
constexpr int kPacks = 32 / kVector<T>;
template <class T>
constexpr int kTile = kThreads* kPacks<T>* kVector<T>;

// Thread blocks that fill a multiprocessor's threads: 2,048, or 1,536 on workstation chips.
// If registers allow fewer blocks, the compiler mixes the products of one Philox block with the
// polynomials of another, which is slower: 97 instead of 90 us.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int kBlocksAtOnce = 6;
#else
constexpr int kBlocksAtOnce = 8;
#endif

// Makes `tiles` whole tiles of x, which start on 16 bytes and at block `first`.
template <class T, class Values>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    tiles_kernel(T* x, int64_t tiles, const __grid_constant__ PhiloxSequence sequence,
                 uint32_t first, Values values) {
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t pack = tile * (kThreads * kPacks<T>)+threadIdx.x;
#pragma unroll
    for (int j = 0; j < kPacks<T>; ++j) {
      float out[kVector<T>];
      make_pack<T>(sequence, first + static_cast<uint32_t>(pack + j * kThreads) * (kVector<T> / 4),
                   values, out);
      uint4 bits;
      store(reinterpret_cast<T*>(&bits), out);
      reinterpret_cast<uint4*>(x)[pack + j * kThreads] = bits;
    }
  }
}

// Makes any n elements, of which the first is number `skip` of block `first`.
template <class T, class Values>
__global__ void __launch_bounds__(kThreads)
    elements_kernel(T* x, int64_t n, const __grid_constant__ PhiloxSequence sequence,
                    uint32_t first, int skip, Values values) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t pack = int64_t{blockIdx.x} * kThreads + threadIdx.x; pack * kVector<T> - skip < n;
       pack += threads) {
    float out[kVector<T>];
    make_pack<T>(sequence, first + static_cast<uint32_t>(pack) * (kVector<T> / 4), values, out);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const int64_t at = pack * kVector<T> - skip + i;
      if (at >= 0 && at < n) x[at] = narrow<T>(out[i]);
    }
  }
}

template <class Values>
void generate(Stream& stream, const Tensor& x, int64_t seed, int64_t offset, const Values& values) {
  CudaStream& cuda = on_cuda(stream);
  with_float("x", x, [&]<class T>() {
    // Each launch ends where the upper half of the block number changes.
    for (int64_t at = 0; at < x.numel();) {
      const uint64_t element = static_cast<uint64_t>(offset) + static_cast<uint64_t>(at),
                     block = element / 4;
      const uint64_t next = ((block >> 32) + 1) << 34;  // as an element's number
      const int64_t n =
          static_cast<int64_t>(std::min(static_cast<uint64_t>(x.numel() - at), next - element));
      const PhiloxSequence sequence(static_cast<uint64_t>(seed), Values::kStream,
                                    static_cast<uint32_t>(block >> 32));
      const uint32_t first = static_cast<uint32_t>(block);
      const int skip = static_cast<int>(element % 4);
      T* to = x.data<T>() + at;
      const int64_t tiles = skip == 0 && aligned16({to}) ? n / kTile<T> : 0;
      const int64_t done = tiles * kTile<T>;
      if (tiles > 0) {
        tiles_kernel<<<blocks_for(cuda, tiles, 1), kThreads, 0, cuda.compute()>>>(
            to, tiles, sequence, first, values);
        check_launch();
      }
      if (done < n) {
        elements_kernel<<<blocks_for(cuda, n - done + skip, kThreads * kVector<T>), kThreads, 0,
                          cuda.compute()>>>(to + done, n - done, sequence,
                                            first + static_cast<uint32_t>(done / 4), skip, values);
        check_launch();
      }
      at += n;
    }
  });
}

}  // namespace

void philox_normal(Stream& stream, Out x, double mean, double std, int64_t seed, int64_t offset) {
  check_random(x, offset);
  generate(stream, x, seed, offset, Normal{static_cast<float>(mean), static_cast<float>(std)});
}

void philox_uniform(Stream& stream, Out x, double low, double high, int64_t seed, int64_t offset) {
  const UniformRange range = check_uniform(x, low, high, offset);
  generate(stream, x, seed, offset, Uniform{range});
}

}  // namespace llamaforge::cuda

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a random
// function of a counter and a key. There is no state: element i of a sequence is word i % 4 of the
// block with counter (i / 4, stream, 0) and key = seed. Streams separate uses that share a seed.
#pragma once

#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

enum PhiloxStream : uint32_t { kUniformStream, kNormalStream, kSampleStream, kDropoutStream };

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Holds four words for each of kLanes consecutive blocks.
struct PhiloxWords {
  Words word[4];
};

struct Product {
  Words high, low;
};

#if defined(__aarch64__)
LF_INLINE Product multiply(Words a, uint32_t b) {
  const uint32x4_t words = reinterpret_cast<uint32x4_t>(a);
  const uint64x2_t first = vmull_n_u32(vget_low_u32(words), b);
  const uint64x2_t last = vmull_high_n_u32(words, b);
  return {reinterpret_cast<Words>(
              vuzp2q_u32(vreinterpretq_u32_u64(first), vreinterpretq_u32_u64(last))),
          a * b};
}
#else
typedef uint64_t Longs __attribute__((vector_size(kLanes * 4)));

// Multiplies the lower half of each 64-bit lane by b.
LF_INLINE Longs multiply_low(Longs a, uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Longs>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Longs>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  return (a & 0xffffffffu) * b;
#endif
}

LF_INLINE Product multiply(Words a, uint32_t b) {
  const Longs wide = reinterpret_cast<Longs>(a);
  const Longs even = multiply_low(wide, b), odd = multiply_low(wide >> 32, b);
  return {reinterpret_cast<Words>(even >> 32 | (odd & 0xffffffff00000000u)),
          reinterpret_cast<Words>((even & 0xffffffffu) | odd << 32)};
}
#endif

// Computes the blocks first_block ... first_block + kLanes - 1.
LF_INLINE PhiloxWords philox(uint64_t seed, PhiloxStream stream, uint64_t first_block) {
  PhiloxWords x;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t block = first_block + static_cast<uint64_t>(lane);
    x.word[0][lane] = static_cast<uint32_t>(block);
    x.word[1][lane] = static_cast<uint32_t>(block >> 32);
  }
  x.word[2] = Words{} + static_cast<uint32_t>(stream);
  x.word[3] = Words{};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Product p = multiply(x.word[0], kPhiloxMultiplier0),
                  q = multiply(x.word[2], kPhiloxMultiplier1);
    x = {{q.high ^ x.word[1] ^ key0, q.low, p.high ^ x.word[3] ^ key1, p.low}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return x;
}

// Returns a number in [0, 1) of 53 bits for sampling, from one block of Philox for each number.
inline double sample_unit(int64_t seed, int64_t number) {
  const PhiloxWords words =
      philox(static_cast<uint64_t>(seed), kSampleStream, static_cast<uint64_t>(number));
  const uint64_t bits = static_cast<uint64_t>(words.word[0][0]) << 32 | words.word[1][0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

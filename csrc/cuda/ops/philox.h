// Philox4x32-10 (Salmon et al. 2011), a random function of a counter and a key. The words equal
// those of csrc/cpu/philox.h.
#pragma once

#include <cstdint>

namespace llamaforge::cuda {

enum PhiloxStream : uint32_t { kUniformStream, kNormalStream, kSampleStream, kDropoutStream };

struct PhiloxWords {
  uint32_t word[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

#ifdef __CUDACC__
// Runs one round in place with its keys.
__device__ __forceinline__ void philox_round(PhiloxWords& x, uint32_t key0, uint32_t key1) {
  const uint64_t p = uint64_t{x.word[0]} * kPhiloxMultiplier0,
                 q = uint64_t{x.word[2]} * kPhiloxMultiplier1;
  x = {{static_cast<uint32_t>(q >> 32) ^ x.word[1] ^ key0, static_cast<uint32_t>(q),
        static_cast<uint32_t>(p >> 32) ^ x.word[3] ^ key1, static_cast<uint32_t>(p)}};
}

__device__ __forceinline__ PhiloxWords philox(uint64_t seed, PhiloxStream stream, uint64_t block) {
  PhiloxWords x = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, 0}};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1)
    philox_round(x, key0, key1);
  return x;
}

// Returns a number in [0, 1) with 53 bits for sampling; each number uses one block of Philox.
__device__ inline double sample_unit(uint64_t seed, int64_t number) {
  const PhiloxWords words = philox(seed, kSampleStream, static_cast<uint64_t>(number));
  const uint64_t bits = uint64_t{words.word[0]} << 32 | words.word[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}
#endif

// Philox for many blocks whose numbers differ only in the lower half. The host computes the keys,
// and the part of the first two rounds that is equal for all blocks.
class PhiloxSequence {
 public:
  __host__ PhiloxSequence(uint64_t seed, PhiloxStream stream, uint32_t block_high) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    uint32_t low[10], high[10];
    for (int round = 0; round < 10; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1)
      low[round] = key0, high[round] = key1;
    const uint64_t q = uint64_t{stream} * kPhiloxMultiplier1;
    const uint64_t p =
        uint64_t{static_cast<uint32_t>(q >> 32) ^ block_high ^ low[0]} * kPhiloxMultiplier0;
    first_ = high[0];
    second0_ = static_cast<uint32_t>(q) ^ low[1];
    second2_ = static_cast<uint32_t>(p >> 32) ^ high[1];
    for (int round = 2; round < 10; ++round)
      key0_[round - 2] = low[round], key1_[round - 2] = high[round];
    key1_[0] ^= static_cast<uint32_t>(p);  // the fourth word after the second round
  }
#ifdef __CUDACC__
  __device__ __forceinline__ PhiloxWords operator()(uint32_t block_low) const {
    const uint64_t p = uint64_t{block_low} * kPhiloxMultiplier0;
    const uint64_t q = uint64_t{static_cast<uint32_t>(p >> 32) ^ first_} * kPhiloxMultiplier1;
    PhiloxWords x = {{static_cast<uint32_t>(q >> 32) ^ second0_, static_cast<uint32_t>(q),
                      static_cast<uint32_t>(p) ^ second2_, 0}};
#pragma unroll
    for (int round = 0; round < 8; ++round) philox_round(x, key0_[round], key1_[round]);
    return x;
  }
#endif

 private:
  uint32_t first_, second0_, second2_, key0_[8], key1_[8];
};

}  // namespace llamaforge::cuda

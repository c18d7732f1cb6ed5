// Philox4x32-10 (Salmon et al. 2011): a random function of a counter and a key, word for word that of csrc/cpu/philox.h.
#pragma once

#include <cstdint>

namespace llamaforge::cuda {

enum PhiloxStream : uint32_t { kUniformStream, kNormalStream, kSampleStream };

struct PhiloxWords {
  uint32_t word[4];
};

// The keys of the ten rounds: they depend on the seed alone, so kernels that make many blocks are given them.
struct PhiloxKeys {
  uint32_t low[10], high[10];
  __host__ __device__ explicit PhiloxKeys(uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
      low[round] = key0;
      high[round] = key1;
    }
  }
};

#ifdef __CUDACC__
__device__ __forceinline__ PhiloxWords philox(const PhiloxKeys& keys, PhiloxStream stream, uint64_t block) {
  uint32_t x0 = static_cast<uint32_t>(block), x1 = static_cast<uint32_t>(block >> 32), x2 = stream, x3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{x0} * 0xD2511F53u, q = uint64_t{x2} * 0xCD9E8D57u;
    x0 = static_cast<uint32_t>(q >> 32) ^ x1 ^ keys.low[round];
    x1 = static_cast<uint32_t>(q);
    x2 = static_cast<uint32_t>(p >> 32) ^ x3 ^ keys.high[round];
    x3 = static_cast<uint32_t>(p);
  }
  return {{x0, x1, x2, x3}};
}
__device__ __forceinline__ PhiloxWords philox(uint64_t seed, PhiloxStream stream, uint64_t block) {
  return philox(PhiloxKeys(seed), stream, block);
}
#endif

}  // namespace llamaforge::cuda

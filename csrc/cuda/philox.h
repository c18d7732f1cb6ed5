// Philox4x32-10 (Salmon et al. 2011): a random function of a counter and a key, word for word that of csrc/cpu/philox.h.
#pragma once

#include <cstdint>

namespace llamaforge::cuda {

enum PhiloxStream : uint32_t { kUniformStream, kNormalStream, kSampleStream };

struct PhiloxWords {
  uint32_t word[4];
};

#ifdef __CUDACC__
__device__ __forceinline__ PhiloxWords philox(uint64_t seed, PhiloxStream stream, uint64_t block) {
  uint32_t x0 = static_cast<uint32_t>(block), x1 = static_cast<uint32_t>(block >> 32), x2 = stream, x3 = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{x0} * 0xD2511F53u, q = uint64_t{x2} * 0xCD9E8D57u;
    x0 = static_cast<uint32_t>(q >> 32) ^ x1 ^ key0;
    x1 = static_cast<uint32_t>(q);
    x2 = static_cast<uint32_t>(p >> 32) ^ x3 ^ key1;
    x3 = static_cast<uint32_t>(p);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}
#endif

}  // namespace llamaforge::cuda

// The mail by which blocks hand each other the results of a chain's links (chain.cu).
#pragma once

#include "cuda/gemm/chain_link.cuh"

namespace llamaforge::cuda::chain {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct Mail {
  uint32_t* words;
  uint32_t tag;  // in the upper half

  __device__ __forceinline__ void write(int64_t at, bfloat16 x) const {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(words + at), "r"(tag | x.bits)
                 : "memory");
  }
  // Returns once one of the calling lanes has its number at `at`. If all lanes asked, their
  // questions would slow down the blocks that send and the copies of weights (docs/LOG.md).
  __device__ __forceinline__ void await(int64_t at) const {
    const unsigned asking = __activemask();
    // Blocks ask for different numbers, so that no place in memory has many askers.
    const int wanted = static_cast<int>(blockIdx.x) % 32,
              asker = asking >> wanted & 1 ? wanted : __ffs(static_cast<int>(asking)) - 1;
    if (static_cast<int>(threadIdx.x) % 32 == asker) {
      uint32_t word;
      do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
                     : "=r"(word)
                     : "l"(words + at)
                     : "memory");
      } while ((word ^ tag) >> 16 != 0);
    }
    __syncwarp(asking);
  }
  // Eight numbers from `at` on, once they are there.
  __device__ __forceinline__ uint4 take(int64_t at) const {
    await(at);
    uint4 a, b;
    do {
      a = load(words + at);
      b = load(words + at + 4);
    } while (!has_tag(a) || !has_tag(b));
    return packed(a, b);
  }
  // Eight numbers from each place on, with all loads on their way at once.
  template <int kCount>
  __device__ __forceinline__ void take(const int64_t (&at)[kCount],
                                       uint4 (&numbers)[kCount]) const {
    uint4 a[kCount], b[kCount];
    for (;;) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        a[i] = load(words + at[i]);
        b[i] = load(words + at[i] + 4);
      }
      bool all = true;
#pragma unroll
      for (int i = 0; i < kCount; ++i) all = all && has_tag(a[i]) && has_tag(b[i]);
      if (__all_sync(0xffffffffu, all)) break;
      await(at[0]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) numbers[i] = packed(a[i], b[i]);
  }
  // kCount times eight numbers, `stride` apart, with all loads on their way at once; only those
  // before `end` are given to put(at, numbers).
  template <int kCount, class Put>
  __device__ __forceinline__ void take(int64_t at, int stride, int64_t end, const Put& put) const {
    await(at);
    uint4 a[kCount], b[kCount];
    bool all;
    do {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int64_t from = at + j * stride < end ? at + j * stride : at;
        a[j] = load(words + from);
        b[j] = load(words + from + 4);
      }
      all = true;
#pragma unroll
      for (int j = 0; j < kCount; ++j) all = all && has_tag(a[j]) && has_tag(b[j]);
    } while (!all);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (at + j * stride < end) put(at + j * stride, packed(a[j], b[j]));
    }
  }

 private:
  static __device__ __forceinline__ uint4 load(const uint32_t* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
  }
  __device__ __forceinline__ bool has_tag(const uint4& v) const {
    return ((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) >> 16 == 0;
  }
  static __device__ __forceinline__ uint4 packed(const uint4& a, const uint4& b) {
    return {__byte_perm(a.x, a.y, 0x5410), __byte_perm(a.z, a.w, 0x5410),
            __byte_perm(b.x, b.y, 0x5410), __byte_perm(b.z, b.w, 0x5410)};
  }
};

// The mail of link number l of a chain.
__device__ __forceinline__ Mail mail_of(uint32_t* words, int box_words, unsigned links_run, int l) {
  return {words + int64_t{l % kMailboxes} * box_words, (links_run + static_cast<unsigned>(l) + 1)
                                                           << 16};
}

#endif

}  // namespace llamaforge::cuda::chain

// The results of the units of an attention, by which blocks share the keys of a long context.
#pragma once

#include "cuda/gemm/chain_link.cuh"

namespace llamaforge::cuda::chain {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Results travel as mail does. Fences and counters instead make a step of TinyLlama-1.1B 1% slower
// (docs/LOG.md). A float and its tag are a word of 64 bits. The tags of two launches differ, and a
// block writes for the next attention only after all blocks have merged this one.
template <int kSize>
struct UnitMail {
  static constexpr int kPairs = unit_pairs(kSize);  // of a head and unit: maximum and sum first
  ulonglong2* pairs;                                // (tokens, heads, units, kPairs)
  uint32_t tag;

  __device__ __forceinline__ void put(const paged::Call& c, int64_t head, int nth, int d,
                                      const paged::Pair& sum) const {
    ulonglong2* const own = pairs + (head * c.most_units + nth) * kPairs;
    store(own + 1 + d / 2, sum.x, sum.y);
    if (d == 0) store(own, sum.maximum, sum.total);
  }

  // Gives the results of tokens with several units to write(at, sum). The blocks after those with
  // items do that, a warp for 64 numbers of a head. Called by all warps that compute, once all
  // items of their block are on their way.
  template <class Write>
  __device__ __forceinline__ void merge(const paged::Call& c, const paged::Pages& pages, int items,
                                        const Write& write) const {
    constexpr int kTasks = kSize / 64;  // of a head
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int blocks = static_cast<int>(gridDim.x), heads = c.call.heads,
              tasks = c.call.batch * c.call.time * heads * kTasks;
    const int first = static_cast<int>(blockIdx.x) - items % blocks;
    for (int task = (first < 0 ? first + blocks : first) + warp * blocks; task < tasks;
         task += few::kWarps * blocks) {
      const int token_head = task / kTasks, token = token_head < heads ? 0 : token_head / heads;
      const int units = paged::Units(c.call, token, pages.position(token)).count;
      if (units == 1) continue;
      const int pair = task % kTasks * 32 + lane;
      write(int64_t{token_head} * kSize + 2 * pair,
            sum_of(pairs + int64_t{token_head} * c.most_units * kPairs, units, 1 + pair));
    }
  }

 private:
  // The lane's two numbers of all units, in their order.
  __device__ __forceinline__ paged::Pair sum_of(const ulonglong2* head, int units, int pair) const {
    constexpr int kAtOnce = 4;
    // The unit with the newest key is the last.
    if (threadIdx.x % 32 == 0) {
      while (!has_tag(load(head + (units - 1) * kPairs))) {
      }
    }
    __syncwarp();
    paged::Pair sum;
    for (int unit = 0; unit < units; unit += kAtOnce) {
      ulonglong2 totals[kAtOnce], numbers[kAtOnce];
      bool all;
      do {
        all = true;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const ulonglong2* const own = head + min(unit + i, units - 1) * kPairs;
          totals[i] = load(own);
          numbers[i] = load(own + pair);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) all = all && has_tag(totals[i]) && has_tag(numbers[i]);
      } while (!all);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (unit + i < units)
          sum.fold(number(totals[i].x), number(totals[i].y),
                   make_float2(number(numbers[i].x), number(numbers[i].y)));
      }
    }
    return sum;
  }
  __device__ __forceinline__ void store(ulonglong2* to, float x, float y) const {
    const auto word = [&](float number) {
      return static_cast<unsigned long long>(tag) << 32 | __float_as_uint(number);
    };
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(word(x)),
                 "l"(word(y))
                 : "memory");
  }
  static __device__ __forceinline__ ulonglong2 load(const ulonglong2* p) {
    ulonglong2 words;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(words.x), "=l"(words.y)
                 : "l"(p)
                 : "memory");
    return words;
  }
  __device__ __forceinline__ bool has_tag(const ulonglong2& words) const {
    return words.x >> 32 == tag && words.y >> 32 == tag;
  }
  static __device__ __forceinline__ float number(unsigned long long word) {
    return __uint_as_float(static_cast<unsigned>(word));
  }
};

#endif

}  // namespace llamaforge::cuda::chain

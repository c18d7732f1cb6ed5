// Products of small tiles on the registers of one core: the inner loops of attention. With data at
// hand they run at the core's peak from 64 steps on (measured on Zen 5, GFLOP/s of one core: f32
// 210, bf16 425; 12x2 blocks: 145 and 280).
//
// An engine says how a product takes its operands. All of them are arrays of 4-byte words,
// `kPerWord` elements of the summed axis k to a word:
//   FloatEngine  1 float per word, multiply-add. Attention also takes bf16 tensors through it:
//   packing widens them. PairEngine   2 bf16 per word, vdpbf16ps: two multiply-adds per lane and
//   instruction, sums in f32.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/simd.h"

namespace llamaforge::LF_CPU_NAMESPACE {

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct FloatEngine {
  using Word = float;
  static constexpr int64_t kPerWord = 1;

  static LF_INLINE Floats multiply_add(Word a, Floats b, Floats c) { return a * b + c; }
  static LF_INLINE Floats load_words(const Word* p) { return load(p); }

  static LF_INLINE void store_row(Word* p, const bfloat16* x) { store(p, load(x)); }
  static LF_INLINE void store_row(Word* p, const float* x) { store(p, load(x)); }
};

#if defined(__AVX512BF16__)
struct PairEngine {
  using Word = uint32_t;
  static constexpr int64_t kPerWord = 2;

  static LF_INLINE Floats load_words(const Word* p) {
    return load(reinterpret_cast<const float*>(p));
  }
  static LF_INLINE Floats multiply_add(Word a, Floats b, Floats c) {
    const __m512i pairs = _mm512_set1_epi32(static_cast<int>(a));
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(c),
                                                     reinterpret_cast<__m512bh>(pairs),
                                                     reinterpret_cast<__m512bh>(b)));
  }

  // Two rows of bf16, side by side in words, to words that hold one element of each. Width is a
  // whole number of vectors.
  static LF_INLINE void pair_vector(const void* first_row, const void* second_row, Word* paired) {
    Words first, second;
    std::memcpy(&first, first_row, sizeof first);
    std::memcpy(&second, second_row, sizeof second);
    const Floats even = reinterpret_cast<Floats>((first & 0xffffu) | (second << 16));
    const Floats odd = reinterpret_cast<Floats>((first >> 16) | (second & 0xffff0000u));
    store(reinterpret_cast<float*>(paired), interleave_low(even, odd));
    store(reinterpret_cast<float*>(paired) + kLanes, interleave_high(even, odd));
  }
};
#endif

// Where a word of the left operand lies: data[row * row_stride + step * step_stride].
template <class Word>
struct LeftOperand {
  const Word* data;
  int64_t row_stride, step_stride;
};

#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kBlockVectors = 4;  // 24 sums, 4 columns of b: 28 of 32 registers
#elif defined(__AVX__)
constexpr int kBlockRows = 6, kBlockVectors = 2;
#elif defined(__aarch64__)
// 16 sums keep 4 pipes with a latency of 4 busy; a panel of b is 16 columns, one line of the cache.
constexpr int kBlockRows = 4, kBlockVectors = 4;
#else
constexpr int kBlockRows = 4, kBlockVectors = 2;
#endif

// Memory that the product after this one reads: fetched into the cache meanwhile, a little every
// kFetchSteps steps.
template <class Word>
struct NextOperands {
  const Word *a, *b;  // a has the strides of this product's; b is one piece. Any address will do:
                      // fetching does not fault
};
constexpr int64_t kFetchSteps = 16;
LF_INLINE void fetch(const void* p) { __builtin_prefetch(p); }

// c = a · b, or with `accumulate` += in one of two orders: the sum over the steps goes on from c,
// or (kFromFar) is made from 0 and added to c at the end. The latter does not wait for c from a far
// cache, and rounds less; it fetches c and `next`.
template <class Engine, bool kFromFar, int kRows, int kVectors>
void multiply_block(const typename Engine::Word* a, int64_t row_stride, int64_t step_stride,
                    const typename Engine::Word* b, int64_t b_stride, int64_t steps, float* c,
                    int64_t c_stride, bool accumulate,
                    const NextOperands<typename Engine::Word>& next) {
  Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    if constexpr (kFromFar) {
      fetch(c + row * c_stride);
      fetch(c + row * c_stride + kVectors * kLanes - 1);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[row][v] = accumulate && !kFromFar ? load(c + row * c_stride + v * kLanes) : Floats{};
    }
  }
  const auto add_step = [&](int64_t step) __attribute__((always_inline)) {
    Floats column[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      column[v] = Engine::load_words(b + step * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const auto word = a[row * row_stride + step * step_stride];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sum[row][v] = Engine::multiply_add(word, column[v], sum[row][v]);
    }
  };
  int64_t step = 0;
  if constexpr (kFromFar) {
    const typename Engine::Word *next_a = next.a, *next_b = next.b;
    const int64_t line_stride = step_stride == 1 ? row_stride : kFetchSteps;
    for (; step + kFetchSteps <= steps; step += kFetchSteps) {
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) fetch(next_a + row * line_stride);
#pragma GCC unroll 8
      for (int line = 0; line < kVectors * kLanes / kFetchSteps; ++line)
        fetch(next_b + line * kFetchSteps);
      next_a += step_stride * kFetchSteps;
      next_b += kVectors * kLanes;
      for (int64_t i = 0; i < kFetchSteps; ++i) add_step(step + i);
    }
  }
  for (; step < steps; ++step) add_step(step);
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + row * c_stride + v * kLanes;
      store(out, accumulate && kFromFar ? load(out) + sum[row][v] : sum[row][v]);
    }
  }
}

template <class Engine>
using BlockProduct = void (*)(const typename Engine::Word*, int64_t, int64_t,
                              const typename Engine::Word*, int64_t, int64_t, float*, int64_t, bool,
                              const NextOperands<typename Engine::Word>&);

// [rows - 1][vectors - 1]
template <class Engine, bool kFromFar = false, size_t... kIndex>
constexpr std::array<BlockProduct<Engine>, sizeof...(kIndex)> block_products(
    std::index_sequence<kIndex...>) {
  return {
      &multiply_block<Engine, kFromFar, kIndex / kBlockVectors + 1, kIndex % kBlockVectors + 1>...};
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

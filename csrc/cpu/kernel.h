// Code shared by element-wise CPU kernels: checks of arguments, loops over vectors with their tail,
// and fixed chunks for the team. Chunks depend on the size alone, so results do not depend on the
// number of threads.
#pragma once

#include <algorithm>

#include "cpu/cpu_ops.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "ops/checks/common.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// ---- loops --------------------------------------------------------------------------------------

// A body of for_each_vector sees whole vectors and, at the end, one partial vector through the same
// interface.
struct WholeVector {
  template <class T>
  LF_INLINE Floats load(const T* p) const {
    return LF_CPU_NAMESPACE::load(p);
  }
  template <class T>
  LF_INLINE void store(T* p, Floats v) const {
    LF_CPU_NAMESPACE::store(p, v);
  }
};
struct PartialVector {
  int64_t count;
  template <class T>
  LF_INLINE Floats load(const T* p) const {
    return load_partial(p, count);
  }
  template <class T>
  LF_INLINE void store(T* p, Floats v) const {
    store_partial(p, v, count);
  }
};

template <class Body>
LF_INLINE void for_each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, WholeVector{});
  if (i < end) body(i, PartialVector{end - i});
}

// Elements: enough work to pay for a thread, and small enough to balance.
constexpr int64_t kChunk = 16384;

// Calls body(begin, end) on the team for each chunk of 0..n; `weight` is the work of one element of
// n.
template <class Body>
void parallel_chunks(int64_t n, int64_t chunk, int64_t weight, const Body& body) {
  parallel_for((n + chunk - 1) / chunk, chunk * weight, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) body(c * chunk, std::min(n, (c + 1) * chunk));
  });
}

// Calls for_each_vector with `body` for each chunk of 0..n, on the team.
template <class Body>
void parallel_vectors(int64_t n, const Body& body) {
  parallel_chunks(n, kChunk, 1,
                  [&](int64_t begin, int64_t end) { for_each_vector(begin, end, body); });
}

// Calls body(begin, end) on the team for ranges of rows that do not depend on each other.
template <class Body>
void parallel_rows(int64_t rows, int64_t columns, const Body& body) {
  parallel_for(rows, std::max<int64_t>(1, columns), body);
}

// ---- arithmetic ---------------------------------------------------------------------------------

// Computes a · b + c with one rounding, whatever the compiler contracts, for results that must be
// equal on every device.
LF_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<Floats>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                            reinterpret_cast<float32x4_t>(a),
                                            reinterpret_cast<float32x4_t>(b)));
#else
  for (int lane = 0; lane < kLanes; ++lane) c[lane] = std::fma(a[lane], b[lane], c[lane]);
  return c;
#endif
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

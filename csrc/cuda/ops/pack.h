// Packs of several elements of any dtype that move as one access.
#pragma once

#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {

// kCount elements; a copy of it is one access of up to 16 bytes (or several of 16).
template <class T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

// Whether arrays of T at these pointers can be read in packs of kCount.
template <class T, int kCount>
bool takes_packs(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignof(Pack<T, kCount>) != 0) return false;
  }
  return true;
}

#ifdef __CUDACC__
template <class T, int n>
__device__ __forceinline__ Pack<T, n> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}
template <class T, int n>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
}

// The maximum over packs that are passed in one after the other; NaN wins. bf16 numbers are
// compared two at a time.
template <class T>
struct RunningMaximum {
  float so_far = Maximum::identity();
  template <int n>
  __device__ __forceinline__ void see(const Pack<T, n>& pack) {
#pragma unroll
    for (const T x : pack.value) so_far = Maximum{}(so_far, widen(x));
  }
  __device__ __forceinline__ float value() const { return so_far; }
};
template <>
struct RunningMaximum<bfloat16> {
  uint32_t so_far = 0xff80ff80u;  // -inf twice
  template <int n>
  __device__ __forceinline__ void see(const Pack<bfloat16, n>& pack) {
#pragma unroll
    for (int k = 0; k < n; k += 2) {
      const uint32_t low = pack.value[k].bits, high = pack.value[k + 1 < n ? k + 1 : k].bits;
      asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(so_far) : "r"(low | high << 16));
    }
  }
  __device__ __forceinline__ float value() const {
    return Maximum{}(__uint_as_float(so_far << 16), __uint_as_float(so_far & 0xffff0000u));
  }
};
#endif

}  // namespace llamaforge::cuda

// Several elements that move as one access, of any dtype.
#pragma once

#include "cuda/launch.h"

namespace llamaforge::cuda {

// kCount elements; a copy of it is one access of up to 16 bytes (or several of 16).
template <class T, int kCount> struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T value[kCount];
};

// Whether an array of T at these places can be read in packs of kCount.
template <class T, int kCount> bool takes_packs(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignof(Pack<T, kCount>) != 0) return false;
  }
  return true;
}

#ifdef __CUDACC__
template <class T, int n> __device__ __forceinline__ Pack<T, n> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}
template <class T, int n> __device__ __forceinline__ void store_pack(T* p, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
}
#endif

}  // namespace llamaforge::cuda

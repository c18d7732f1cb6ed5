// Plans are made on the host and read by kernels: what a kernel of a GPU calls too is marked
// LF_HOST_DEVICE.
//
// Functions of this folder are static, as those of csrc/ops/checks are and for the same reason.
#pragma once

#ifdef __CUDACC__
#define LF_HOST_DEVICE __host__ __device__
#else
#define LF_HOST_DEVICE
#endif

// Before a loop: a GPU has eight loads on their way together. Other compilers decide for themselves.
#ifdef __CUDA_ARCH__
#define LF_UNROLL_8 _Pragma("unroll 8")
#else
#define LF_UNROLL_8
#endif

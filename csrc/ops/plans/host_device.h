// Plans are made on the host and read by kernels. Functions that a GPU's kernels call too are
// marked LF_HOST_DEVICE.
//
// Functions of this folder are static, for the reason given in csrc/ops/checks/common.h.
#pragma once

#ifdef __CUDACC__
#define LF_HOST_DEVICE __host__ __device__
#else
#define LF_HOST_DEVICE
#endif

// This pragma stands before a loop, so that a GPU has eight loads in flight together. Other
// compilers decide for themselves.
#ifdef __CUDA_ARCH__
#define LF_UNROLL_8 _Pragma("unroll 8")
#else
#define LF_UNROLL_8
#endif

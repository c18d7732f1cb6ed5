// The part of cuBLASLt's interface that we use. cuBLASLt is opened at run time and its interface is
// declared here, so that building needs no cuBLASLt at all, and running does not need it in a
// particular place. cublaslt_check.cpp compares these values with NVIDIA's header where it is
// installed.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace llamaforge::cuda {

namespace lt {

using Status = int;  // 0: success
using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using MatmulPreference = void*;

struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

constexpr int kCompute32F = 68, kCompute32FFastTF32 = 77;
constexpr int kOperationN = 0, kOperationT = 1;
constexpr int kDescTransA = 3, kDescTransB = 4;
// Of products in fp8: pointers to a number that an operand is multiplied with, and whether the
// tensor cores add up sums without widening them now and then.
constexpr int kDescScaleA = 17, kDescScaleB = 18, kDescFastAccumulation = 25;
constexpr int kLayoutBatchCount = 5, kLayoutBatchStride = 6;
constexpr int kPreferenceWorkspaceBytes = 1, kPreferenceReductionSchemes = 3;
constexpr int kPreferenceAlignmentA = 5, kPreferenceAlignmentB = 6, kPreferenceAlignmentC = 7,
              kPreferenceAlignmentD = 8;
constexpr uint32_t kReductionNone = 0, kReductionComputeType = 2;
constexpr int kAlgoId = 0, kAlgoTile = 1, kAlgoSplitK = 2, kAlgoStages = 6;

}  // namespace lt

// The functions, named without their `cublasLt` prefix.
struct CublasLt {
  lt::Status (*Create)(lt::Handle*);
  lt::Status (*Destroy)(lt::Handle);
  size_t (*GetVersion)();
  lt::Status (*MatmulDescCreate)(lt::MatmulDesc*, int compute, cudaDataType scale);
  lt::Status (*MatmulDescDestroy)(lt::MatmulDesc);
  lt::Status (*MatmulDescSetAttribute)(lt::MatmulDesc, int attribute, const void*, size_t);
  lt::Status (*MatrixLayoutCreate)(lt::MatrixLayout*, cudaDataType, uint64_t rows, uint64_t columns,
                                   int64_t ld);
  lt::Status (*MatrixLayoutDestroy)(lt::MatrixLayout);
  lt::Status (*MatrixLayoutSetAttribute)(lt::MatrixLayout, int attribute, const void*, size_t);
  lt::Status (*MatmulPreferenceCreate)(lt::MatmulPreference*);
  lt::Status (*MatmulPreferenceDestroy)(lt::MatmulPreference);
  lt::Status (*MatmulPreferenceSetAttribute)(lt::MatmulPreference, int attribute, const void*,
                                             size_t);
  lt::Status (*MatmulAlgoGetHeuristic)(lt::Handle, lt::MatmulDesc, lt::MatrixLayout a,
                                       lt::MatrixLayout b, lt::MatrixLayout c, lt::MatrixLayout d,
                                       lt::MatmulPreference, int requested, lt::HeuristicResult*,
                                       int* found);
  lt::Status (*MatmulAlgoCheck)(lt::Handle, lt::MatmulDesc, lt::MatrixLayout a, lt::MatrixLayout b,
                                lt::MatrixLayout c, lt::MatrixLayout d, const lt::Algorithm*,
                                lt::HeuristicResult*);
  lt::Status (*MatmulAlgoConfigGetAttribute)(const lt::Algorithm*, int attribute, void*, size_t,
                                             size_t* written);
  lt::Status (*Matmul)(lt::Handle, lt::MatmulDesc, const void* alpha, const void* a,
                       lt::MatrixLayout, const void* b, lt::MatrixLayout, const void* beta,
                       const void* c, lt::MatrixLayout, void* d, lt::MatrixLayout,
                       const lt::Algorithm*, void* workspace, size_t workspace_bytes, cudaStream_t);

  std::string path;
  // Returns for example "cuBLASLt 13.1.0 from /path".
  std::string description() const;
};

// Opens cuBLASLt on first use. Throws ERR_DEVICE with every place tried. If LLAMAFORGE_CUBLASLT
// names a file, only that file is tried.
const CublasLt& cublaslt();

}  // namespace llamaforge::cuda

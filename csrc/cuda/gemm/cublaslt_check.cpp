// Checks our declarations of cuBLASLt against NVIDIA's own, where the header is installed.
#include "cuda/gemm/cublaslt.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include <type_traits>

namespace llamaforge::cuda::lt {

static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) &&
              alignof(Algorithm) == alignof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(sizeof(Status) == sizeof(cublasStatus_t) && CUBLAS_STATUS_SUCCESS == 0);
static_assert(kCompute32F == CUBLAS_COMPUTE_32F &&
              kCompute32FFastTF32 == CUBLAS_COMPUTE_32F_FAST_TF32);
static_assert(kOperationN == CUBLAS_OP_N && kOperationT == CUBLAS_OP_T);
static_assert(kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA &&
              kDescTransB == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(kDescScaleA == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER &&
              kDescScaleB == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(kDescFastAccumulation == CUBLASLT_MATMUL_DESC_FAST_ACCUM);
static_assert(kLayoutBatchCount == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
static_assert(kLayoutBatchStride == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
static_assert(kPreferenceWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(kPreferenceReductionSchemes == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(kPreferenceAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(kPreferenceAlignmentB == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(kPreferenceAlignmentC == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(kPreferenceAlignmentD == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(kReductionComputeType == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
static_assert(kAlgoId == CUBLASLT_ALGO_CONFIG_ID && kAlgoTile == CUBLASLT_ALGO_CONFIG_TILE_ID);
static_assert(kAlgoSplitK == CUBLASLT_ALGO_CONFIG_SPLITK_NUM &&
              kAlgoStages == CUBLASLT_ALGO_CONFIG_STAGES_ID);

}  // namespace llamaforge::cuda::lt
#endif

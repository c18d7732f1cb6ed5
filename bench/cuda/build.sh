#!/bin/bash
# Builds the stand-alone kernel benches with one nvcc per file:  bench/cuda/build.sh OUT [nvcc options]
set -euo pipefail
out=$(realpath -m "$1"); shift
cd "$(dirname "$0")/../.."
mkdir -p "$out"
flags=(-std=c++20 -O3 -lineinfo -Icsrc -Ibench/cuda -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr
       --extended-lambda "$@")
kernels=(attention/attention attention/forward_hopper attention/backward_hopper attention/forward_mma
         attention/backward_mma attention/plain attention/statistics attention/cached attention/paged_mma gemm/gemv gemm/few_rows
         gemm/few_rows_staged gemm/chain gemm/chain_kernel
         ops/{rms_norm,rope,swiglu,embedding,cross_entropy,linear_cross_entropy,adamw,sum_of_squares,step_guard,softmax,argmax,philox,sample})
core=(runtime/{arena,cuda_error,cuda_stream,completion_queue,pinned_pool,runtime_library}
      gemm/{gemm,gemm_cache,cublaslt,cublaslt_check})
objects=()
running=()
compile() {  # source object
  nvcc "${flags[@]}" -c "$1" -o "$2" &
  running+=($!)
  objects+=("$2")
}
for name in "${kernels[@]}"; do compile "csrc/cuda/$name.cu" "$out/$(basename "$name").o"; done
for name in "${core[@]}"; do compile "csrc/cuda/$name.cpp" "$out/$(basename "$name").o"; done
compile csrc/runtime/tensor.cpp "$out/tensor.o"
shared=("${objects[@]}")
for bench in attention_bench kernels_bench rows_bench; do compile "bench/cuda/$bench.cu" "$out/$bench.o"; done
for job in "${running[@]}"; do wait "$job"; done
for bench in attention_bench kernels_bench rows_bench; do nvcc "${shared[@]}" "$out/$bench.o" -ldl -o "$out/$bench"; done

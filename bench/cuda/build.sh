#!/bin/bash
# Builds the stand-alone kernel benches with one nvcc per file:  bench/cuda/build.sh OUT [nvcc options]
set -euo pipefail
out=$(realpath -m "$1"); shift
cd "$(dirname "$0")/../.."
mkdir -p "$out"
flags=(-std=c++20 -O3 -lineinfo -Icsrc -Ibench/cuda -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr
       --extended-lambda "$@")
objects=()
jobs_running=()
for source in csrc/cuda/attention/*.cu csrc/cuda/cuda_error.cpp bench/cuda/attention_bench.cu; do
  object=$out/$(basename "${source%.*}").o
  objects+=("$object")
  nvcc "${flags[@]}" -c "$source" -o "$object" &
  jobs_running+=($!)
done
for job in "${jobs_running[@]}"; do wait "$job"; done
nvcc "${objects[@]}" -o "$out/attention_bench"

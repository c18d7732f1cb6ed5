// Figures of a tensor in 8 bits (see ops.def). Counts are whole numbers, so their sum over blocks
// does not depend on the order. Floor: each number is read once.
#include <cuda_runtime.h>

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/fp8.h"
#include "runtime/fp8.h"

namespace llamaforge::cuda {

namespace {

struct Counts {
  unsigned long long zeros, largest, not_finite;
  unsigned maximum;  // the largest code of a finite number, without its sign
};

struct Tally {
  unsigned largest_bits;  // code of the format's largest number
  unsigned zeros = 0, largest = 0, not_finite = 0, maximum = 0;

  __device__ void see(unsigned code) {
    const unsigned size = code & 0x7fu;
    zeros += size == 0;
    largest += size == largest_bits;
    not_finite += size > largest_bits;
    if (size <= largest_bits) maximum = max(maximum, size);
  }
};

__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint4* vectors, int64_t vector_count, const uint8_t* rest, int rest_count,
                 unsigned largest_bits, Counts* counts) {
  Tally tally{largest_bits};
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < vector_count; i += threads) {
    const uint4 vector = vectors[i];
    const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (const unsigned word : words) {
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) tally.see(word >> (8 * byte) & 0xffu);
    }
  }
  if (blockIdx.x == 0 && static_cast<int>(threadIdx.x) < rest_count) tally.see(rest[threadIdx.x]);
  const unsigned zeros = block_sum(tally.zeros), largest = block_sum(tally.largest);
  const unsigned not_finite = block_sum(tally.not_finite);
  const unsigned maximum =
      block_reduce(tally.maximum, 0u, [](unsigned a, unsigned b) { return max(a, b); });
  if (threadIdx.x != 0) return;
  atomicAdd(&counts->zeros, static_cast<unsigned long long>(zeros));
  atomicAdd(&counts->largest, static_cast<unsigned long long>(largest));
  atomicAdd(&counts->not_finite, static_cast<unsigned long long>(not_finite));
  atomicMax(&counts->maximum, maximum);
}

// `mantissa` and `least_exponent` are those of the format.
__global__ void figures_kernel(const Counts* counts, const float* scale, int64_t n, int mantissa,
                               int least_exponent, float* figures) {
  const int size = static_cast<int>(counts->maximum), field = size >> mantissa,
            fraction = size & ((1 << mantissa) - 1);
  const int digits = field ? fraction + (1 << mantissa) : fraction;
  figures[0] =
      ldexpf(static_cast<float>(digits), (field ? field - 1 : 0) + least_exponent - mantissa) *
      *scale;
  const unsigned long long each[3] = {counts->zeros, counts->largest, counts->not_finite};
  for (int i = 0; i < 3; ++i) {
    figures[i + 1] = static_cast<float>(static_cast<double>(each[i]) / static_cast<double>(n));
  }
}

}  // namespace

void fp8_statistics(Stream& stream, In bits, In scale, Out figures) {
  CudaStream& cuda = on_cuda(stream);
  check_fp8_statistics(bits, scale, figures);
  const Scratch scratch(stream, sizeof(Counts));
  auto* counts = scratch.as<Counts>();
  LF_CUDA_CHECK(cudaMemsetAsync(counts, 0, sizeof(Counts), cuda.compute()));
  const int64_t n = bits.numel(), vectors = aligned16({bits.raw()}) ? n / 16 : 0,
                rest = n - 16 * vectors;
  LF_CHECK(rest <= kThreads, "expected bits to start at a multiple of 16 bytes");
  const auto* codes = static_cast<const uint8_t*>(bits.raw());
  const auto run = [&]<class Format>() {
    count_kernel<<<blocks_for(cuda, vectors), kThreads, 0, cuda.compute()>>>(
        reinterpret_cast<const uint4*>(codes), vectors, codes + 16 * vectors,
        static_cast<int>(rest), Format::kLargestBits, counts);
    check_launch();
    figures_kernel<<<1, 1, 0, cuda.compute()>>>(counts, scale.data<float>(), n, Format::kMantissa,
                                                Format::kLeastExponent, figures.data<float>());
    check_launch();
  };
  bits.dtype == DType::f8e5m2 ? run.template operator()<Fp8Format<float8_e5m2>>()
                              : run.template operator()<Fp8Format<float8_e4m3>>();
}

}  // namespace llamaforge::cuda

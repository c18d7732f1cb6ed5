// Conversion between all dtypes. bf16 is rounded to nearest even. Float to i32 rounds towards zero,
// turns NaN into 0, and clamps to the range. i32 to bf16 goes through f32, as everywhere else.
// Reads and writes each element once.
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"

namespace llamaforge::cuda {

namespace {

__device__ float as_float(float x) { return x; }
__device__ float as_float(bfloat16 x) { return widen(x); }
__device__ float as_float(int32_t x) { return __int2float_rn(x); }

template <class To>
__device__ To from_single(float x) {
  return narrow<To>(x);
}
// The instruction clamps to the range and turns NaN into 0.
template <>
__device__ int32_t from_single<int32_t>(float x) {
  return __float2int_rz(x);
}

template <class From, class To, int kCount>
__global__ void cast_kernel(const From* x, To* y, int64_t n) {
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount; i < n;
       i += int64_t{gridDim.x} * blockDim.x * kCount) {
    if (i + kCount <= n) {
      const auto in = load_pack<From, kCount>(x + i);
      Pack<To, kCount> out;
#pragma unroll
      for (int k = 0; k < kCount; ++k) out.value[k] = from_single<To>(as_float(in.value[k]));
      store_pack(y + i, out);
    } else {
      for (int64_t k = i; k < n; ++k) y[k] = from_single<To>(as_float(x[k]));
    }
  }
}

template <class From, class To>
void convert(CudaStream& cuda, const Tensor& x, const Tensor& y) {
  constexpr int kCount =
      16 / std::max(sizeof(From), sizeof(To));  // neighbouring threads write next to each other
  const From* from = x.data<From>();
  To* to = y.data<To>();
  const int64_t n = x.numel();
  if (takes_packs<From, kCount>({from}) && takes_packs<To, kCount>({to})) {
    cast_kernel<From, To, kCount>
        <<<blocks_for(cuda, n, kThreads * kCount), kThreads, 0, cuda.compute()>>>(from, to, n);
  } else {
    cast_kernel<From, To, 1><<<blocks_for(cuda, n), kThreads, 0, cuda.compute()>>>(from, to, n);
  }
  check_launch();
}

template <class From>
void convert_from(CudaStream& cuda, const Tensor& x, const Tensor& y) {
  switch (y.dtype) {
    case DType::f32: return convert<From, float>(cuda, x, y);
    case DType::bf16: return convert<From, bfloat16>(cuda, x, y);
    case DType::i32: return convert<From, int32_t>(cuda, x, y);
    case DType::f8e4m3:
    case DType::f8e5m2: break;
  }
  check_wide("y", y);
}

}  // namespace

void cast(Stream& stream, In x, Out y) {
  check_shape("y", y, x.shape);
  CudaStream& cuda = on_cuda(stream);
  if (x.dtype == y.dtype) {
    if (x.raw() == y.raw()) return;
    LF_CUDA_CHECK(
        cudaMemcpyAsync(y.raw(), x.raw(), x.bytes(), cudaMemcpyDeviceToDevice, cuda.compute()));
    return;
  }
  switch (x.dtype) {
    case DType::f32: return convert_from<float>(cuda, x, y);
    case DType::bf16: return convert_from<bfloat16>(cuda, x, y);
    case DType::i32: return convert_from<int32_t>(cuda, x, y);
    case DType::f8e4m3:
    case DType::f8e5m2: break;
  }
  check_wide("x", x);
}

}  // namespace llamaforge::cuda

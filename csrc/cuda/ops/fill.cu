// Constants and ramps: fill writes `value`, arange writes start + i · step (computed in double and
// rounded once, so that long ramps do not drift and every device has the same bits), both converted
// to the tensor's dtype. For i32 the values must be whole numbers in range. Writes each element
// once, 16 bytes at a time: 1 · bytes.

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/fill.h"

namespace llamaforge::cuda {

namespace {

// A word holds one element, or two of bf16. The middle is written in 16-byte vectors, the elements
// before and after it one by one.
template <class Bits>
__global__ void fill_kernel(Bits* x, int64_t n, Bits value) {
  constexpr int kPer = 16 / sizeof(Bits);
  const int64_t head =
      min(n, static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(Bits)));
  const int64_t vectors = (n - head) / kPer;
  const uint32_t word = sizeof(Bits) == 2 ? value * 0x10001u : value;
  uint4* body = reinterpret_cast<uint4*>(x + head);
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x,
                threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = thread; i < vectors; i += threads) body[i] = make_uint4(word, word, word, word);
  if (thread < head) x[thread] = value;
  const int64_t tail = head + vectors * kPer + thread;
  if (tail < n) x[tail] = value;
}

template <class Bits>
void fill_bits(CudaStream& cuda, const Tensor& x, Bits value) {
  fill_kernel<<<blocks_for(cuda, x.numel(), kThreads * 16 / sizeof(Bits)), kThreads, 0,
                cuda.compute()>>>(static_cast<Bits*>(x.raw()), x.numel(), value);
  check_launch();
}

template <class T>
__global__ void arange_kernel(T* x, int64_t n, double start, double step) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const double value = fma(static_cast<double>(i), step, start);
    if constexpr (std::is_same_v<T, int32_t>) {
      x[i] = static_cast<int32_t>(value);
    } else {
      x[i] = narrow<T>(static_cast<float>(value));
    }
  }
}

template <class T>
void ramp(CudaStream& cuda, const Tensor& x, double start, double step) {
  arange_kernel<<<blocks_for(cuda, x.numel()), kThreads, 0, cuda.compute()>>>(
      x.data<T>(), x.numel(), start, step);
  check_launch();
}

}  // namespace

void fill(Stream& stream, Out x, double value) {
  check_fill(x, value);
  CudaStream& cuda = on_cuda(stream);
  if (x.dtype == DType::i32) {
    return fill_bits(cuda, x, static_cast<uint32_t>(static_cast<int32_t>(value)));
  }
  const float number = static_cast<float>(value);
  if (x.dtype == DType::bf16) return fill_bits(cuda, x, to_bfloat16(number).bits);
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  fill_bits(cuda, x, bits);
}

void arange(Stream& stream, Out x, double start, double step) {
  check_arange(x, start, step);
  CudaStream& cuda = on_cuda(stream);
  if (x.dtype == DType::i32) {
    return ramp<int32_t>(cuda, x, start, step);
  }
  with_float("x", x, [&]<class T>() { ramp<T>(cuda, x, start, step); });
}

}  // namespace llamaforge::cuda

// SwiGLU (Shazeer 2020, arXiv 2002.05202) on the packed product of one GEMM:  gate_up (N,2F) =
// [gate | up], y (N,F) = silu(gate) · up  with  silu(g) = g · s,  s = 1 / (1 + e^-g). Backward
// recomputes s:  d_gate = dy · up · s · (1 + g · (1 − s)),  d_up = dy · silu(g);  d_gate_up may be
// gate_up. Both are bound by memory: 3 and 5 tensors of (N,F).

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/swiglu.h"

namespace llamaforge::cuda {

namespace {

template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-x));
  return 1.0f / (1.0f + expf(-x));
}

// Beyond this value silu is flat or equals its argument, so its slope is 0 or 1. There 0 times an
// infinity would be NaN.
constexpr float kFlatSilu = 200;

template <class T, int kCount>
__device__ __forceinline__ void read(const T* p, float (&x)[kCount]) {
  if constexpr (kCount == 1)
    x[0] = widen(*p);
  else
    load(p, x);
}
template <class T, int kCount>
__device__ __forceinline__ void write(T* p, const float (&x)[kCount]) {
  if constexpr (kCount == 1)
    *p = narrow<T>(x[0]);
  else
    store(p, x);
}

constexpr int kAtOnce = 2;  // vectors per thread, so that enough loads are in flight

// Calls body(row, column) for every vector of kCount of (rows, ffn). Index: use 32 bits if they
// suffice, because division is cheaper.
template <class Index, int kCount, class Body>
__device__ __forceinline__ void for_each_vector(Index rows, Index ffn, const Body& body) {
  const Index per_row = ffn / kCount, count = rows * per_row,
              threads = static_cast<Index>(gridDim.x) * kThreads;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += threads) {
    body(static_cast<int64_t>(i / per_row), static_cast<int64_t>(i % per_row) * kCount);
  }
}

template <class T, class Index, int kCount>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ gate_up, T* __restrict__ y, Index rows, Index ffn) {
  let_next_start();
  for_each_vector<Index, kCount>(rows, ffn, [&](int64_t row, int64_t column) {
    const T* gate = gate_up + row * 2 * ffn + column;
    float g[kCount], u[kCount];
    read(gate, g);
    read(gate + ffn, u);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float gate_low = at_least(g[k], -kFlatSilu);
      u[k] *= gate_low * sigmoid<T>(gate_low);
    }
    write(y + row * ffn + column, u);
  });
}

template <class T, class Index, int kCount>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ dy, const T* gate_up, T* d_gate_up, Index rows,
                    Index ffn) {
  for_each_vector<Index, kCount>(rows, ffn, [&](int64_t row, int64_t column) {
    const int64_t at = row * 2 * ffn + column;
    float d[kCount], g[kCount], u[kCount];
    read(dy + row * ffn + column, d);
    read(gate_up + at, g);
    read(gate_up + at + ffn, u);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float gate_low = at_least(g[k], -kFlatSilu), s = sigmoid<T>(gate_low), gradient = d[k];
      d[k] = gradient * u[k] * s * (1.0f + at_most(gate_low, kFlatSilu) * (1.0f - s));
      u[k] = gradient * gate_low * s;
    }
    write(d_gate_up + at, d);
    write(d_gate_up + at + ffn, u);
  });
}

// Calls body.operator()<Index, count>() with the widest access that fits.
template <class T, class Body>
void with_access(SwigluSize sizes, std::initializer_list<const void*> pointers, const Body& body) {
  const bool small = 2 * sizes.rows * sizes.ffn < int64_t{1} << 31;
  if (sizes.ffn % kVector<T> == 0 && aligned16(pointers)) {
    small ? body.template operator()<uint32_t, kVector<T>>()
          : body.template operator()<uint64_t, kVector<T>>();
  } else {
    body.template operator()<uint64_t, 1>();
  }
}

unsigned blocks_of(SwigluSize sizes, int count) {
  const int64_t per_block = int64_t{kThreads} * count * kAtOnce;
  return static_cast<unsigned>(
      std::min<int64_t>((sizes.rows * sizes.ffn + per_block - 1) / per_block, INT32_MAX));
}

}  // namespace

void swiglu_forward(Stream& stream, In gate_up, Out y) {
  CudaStream& cuda = on_cuda(stream);
  const SwigluSize sizes = check_swiglu("y", y, gate_up);
  if (y.numel() == 0) return;
  with_float("gate_up", gate_up, [&]<class T>() {
    with_access<T>(sizes, {gate_up.raw(), y.raw()}, [&]<class Index, int kCount>() {
      forward_kernel<T, Index, kCount><<<blocks_of(sizes, kCount), kThreads, 0, cuda.compute()>>>(
          gate_up.data<T>(), y.data<T>(), static_cast<Index>(sizes.rows),
          static_cast<Index>(sizes.ffn));
    });
  });
  check_launch();
}

void swiglu_backward(Stream& stream, In dy, In gate_up, Out d_gate_up) {
  CudaStream& cuda = on_cuda(stream);
  const SwigluSize sizes = check_swiglu_backward(dy, gate_up, d_gate_up);
  if (dy.numel() == 0) return;
  with_float("gate_up", gate_up, [&]<class T>() {
    with_access<T>(sizes, {dy.raw(), gate_up.raw(), d_gate_up.raw()},
                   [&]<class Index, int kCount>() {
                     backward_kernel<T, Index, kCount>
                         <<<blocks_of(sizes, kCount), kThreads, 0, cuda.compute()>>>(
                             dy.data<T>(), gate_up.data<T>(), d_gate_up.data<T>(),
                             static_cast<Index>(sizes.rows), static_cast<Index>(sizes.ffn));
                   });
  });
  check_launch();
}

}  // namespace llamaforge::cuda

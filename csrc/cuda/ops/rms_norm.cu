// RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), alone or with the residual add in front:
//   r = x + skip;  rstd = 1 / sqrt(mean(r²) + eps);  y = r · rstd · weight
// Backward, with g = dy · weight:  dx = rstd · (g − x · rstd² · mean(g · x)) + dr,  weight_grad +=
// Σ_rows dy · x · rstd. dr is the gradient that reached r itself (the residual stream). weight_grad
// accumulates (micro-batches add up), dx is assigned. The sum uses r as it was stored (rounded to
// bf16).
//
// A warp has a row and keeps it in registers, so each tensor is read and written once (floors: 4
// tensors of (N,D) forward with the add, 4 backward with dr). A row that does not fit, or is not
// aligned, is read twice by a block of its own. Deterministic: a warp adds its rows' weight
// gradients in order, and partial sums of blocks are added in order.

#include <cfloat>

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/rms_norm.h"

namespace llamaforge::cuda {

namespace {

constexpr int kWarps = 4, kBlock = 32 * kWarps;

// Squares of numbers beyond 1e18 overflow, and squares of numbers below 1e-18 vanish. A row whose
// mean of squares (+ eps) may be wrong for that reason is summed again in double.
constexpr float kLeastSquare = 1e-30f;
__device__ __forceinline__ bool sure(float mean) { return mean >= kLeastSquare && mean <= FLT_MAX; }
__device__ __forceinline__ float rstd_of(double squares, int64_t columns, float eps) {
  return static_cast<float>(1.0 / sqrt(squares / static_cast<double>(columns) + eps));
}

// ---- rows in registers --------------------------------------------------------------------------

// A lane's share of a row of T: kVectors vectors of 16 bytes, 32 vectors apart. It is kept in T and
// widened when it is used.
template <class T, int kVectors>
struct Row {
  static constexpr int kCount = kVector<T>;
  uint4 vector[kVectors];

  __device__ __forceinline__ void read(const T* from, int lane, int vectors) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = lane + 32 * i;
      vector[i] = at < vectors ? *reinterpret_cast<const uint4*>(from + at * kCount)
                               : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ __forceinline__ void get(int i, float (&x)[kCount]) const {
    load(reinterpret_cast<const T*>(&vector[i]), x);
  }
  __device__ __forceinline__ void put(int i, const float (&x)[kCount]) {
    store(reinterpret_cast<T*>(&vector[i]), x);
  }
};

// Weights may be bf16 while rows are f32; four of them are then 8 bytes.
template <class W, int n>
__device__ __forceinline__ void load_weight(const W* from, float (&w)[n]) {
  if constexpr (sizeof(W) == 2 && n == 4) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    w[0] = __uint_as_float(words.x << 16), w[1] = __uint_as_float(words.x & 0xffff0000u);
    w[2] = __uint_as_float(words.y << 16), w[3] = __uint_as_float(words.y & 0xffff0000u);
  } else {
    load(from, w);
  }
}

template <class T, class W, int kVectors, bool kAdd>
__global__ void __launch_bounds__(kBlock)
    forward_kernel(const T* __restrict__ x, const T* __restrict__ skip,
                   const W* __restrict__ weight, T* __restrict__ r, T* __restrict__ y,
                   float* __restrict__ rstd, int64_t rows, int columns, float eps) {
  let_next_start();
  constexpr int kCount = kVector<T>;
  const int lane = threadIdx.x % 32, vectors = columns / kCount;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < rows;
       row += int64_t{gridDim.x} * kWarps) {
    const int64_t start = row * columns;
    Row<T, kVectors> values, added;
    values.read(x + start, lane, vectors);
    if (kAdd) added.read(skip + start, lane, vectors);
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float v[kCount];
      values.get(i, v);
      if (kAdd) {
        float s[kCount];
        added.get(i, s);
#pragma unroll
        for (int k = 0; k < kCount; ++k) v[k] += s[k];
        values.put(i, v);
        if (lane + 32 * i < vectors) {
          *reinterpret_cast<uint4*>(r + start + (lane + 32 * i) * kCount) = values.vector[i];
        }
        values.get(i, v);
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) squares += v[k] * v[k];
    }
    const float mean = warp_sum(squares) / static_cast<float>(columns) + eps;
    float factor = 1.0f / sqrtf(mean);
    if (!sure(mean)) {
      double wide = 0;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float v[kCount];
        values.get(i, v);
#pragma unroll
        for (int k = 0; k < kCount; ++k) wide += double{v[k]} * v[k];
      }
      factor = rstd_of(warp_sum(wide), columns, eps);
    }
    if (lane == 0) rstd[row] = factor;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = (lane + 32 * i) * kCount;
      if (lane + 32 * i >= vectors) break;
      float v[kCount], w[kCount];
      values.get(i, v);
      load_weight(weight + at, w);
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] = v[k] * factor * w[k];
      store(y + start + at, v);
    }
  }
}

// partial (blocks, columns) is null if no weight gradient is wanted.
template <class T, class W, int kVectors, bool kAdd, bool kWeight>
__global__ void __launch_bounds__(kBlock)
    backward_kernel(const T* __restrict__ dy, const T* __restrict__ x, const W* __restrict__ weight,
                    const float* __restrict__ rstd, const T* __restrict__ dr, T* __restrict__ dx,
                    float* __restrict__ partial, int64_t rows, int columns) {
  constexpr int kCount = kVector<T>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, vectors = columns / kCount;
  float sums[kWeight ? kVectors * kCount : 1] = {};
  for (int64_t row = int64_t{blockIdx.x} * kWarps + warp; row < rows;
       row += int64_t{gridDim.x} * kWarps) {
    const int64_t start = row * columns;
    Row<T, kVectors> gradients, values, residual;
    gradients.read(dy + start, lane, vectors);
    values.read(x + start, lane, vectors);
    if (kAdd) residual.read(dr + start, lane, vectors);
    const float factor = rstd[row];
    float products = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (lane + 32 * i >= vectors) break;
      float g[kCount], v[kCount], w[kCount];
      gradients.get(i, g);
      values.get(i, v);
      load_weight(weight + (lane + 32 * i) * kCount, w);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        products += g[k] * w[k] * v[k];
        if (kWeight) sums[i * kCount + k] += g[k] * (v[k] * factor);
      }
    }
    const float along_x = warp_sum(products) * factor * factor / static_cast<float>(columns);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = (lane + 32 * i) * kCount;
      if (lane + 32 * i >= vectors) break;
      float g[kCount], v[kCount], w[kCount], d[kCount];
      gradients.get(i, g);
      values.get(i, v);
      load_weight(weight + at, w);
      if (kAdd) residual.get(i, d);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float result = (g[k] * w[k] - v[k] * along_x) * factor;
        g[k] = kAdd ? result + d[k] : result;
      }
      store(dx + start + at, g);
    }
  }
  if constexpr (kWeight) {
    // Adds the sums of the block's warps in order, a slice of the row at a time.
    __shared__ float slice[kWarps][32 * kCount];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) slice[warp][lane * kCount + k] = sums[i * kCount + k];
      __syncthreads();
      for (int column = threadIdx.x; column < 32 * kCount; column += kBlock) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += slice[w][column];
        const int at = 32 * kCount * i + column;
        if (at < columns) partial[int64_t{blockIdx.x} * columns + at] = sum;
      }
      __syncthreads();
    }
  }
}

// ---- rows of any length: a block each, read twice -----------------------------------------------
// There is no __restrict__, because r is read back right after it is written.

template <class T, class W>
__global__ void __launch_bounds__(kThreads)
    forward_long_kernel(const T* x, const T* skip, const W* weight, T* r, T* y, float* rstd,
                        int64_t rows, int64_t columns, float eps) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = (skip ? r : x) + row * columns;
    float squares = 0;
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      if (skip)
        r[row * columns + i] =
            narrow<T>(widen(x[row * columns + i]) + widen(skip[row * columns + i]));
      const float v = widen(from[i]);
      squares += v * v;
    }
    const float mean = block_sum(squares) / static_cast<float>(columns) + eps;
    float factor = 1.0f / sqrtf(mean);
    if (!sure(mean)) {
      double wide = 0;
      for (int64_t i = threadIdx.x; i < columns; i += kThreads)
        wide += double{widen(from[i])} * widen(from[i]);
      factor = rstd_of(block_sum(wide), columns, eps);
    }
    if (threadIdx.x == 0) rstd[row] = factor;
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      y[row * columns + i] = narrow<T>(widen(from[i]) * factor * widen(weight[i]));
    }
  }
}

// A block walks its rows. A thread always has the same columns, so their sums can stay in
// `partial`.
template <class T, class W>
__global__ void __launch_bounds__(kThreads)
    backward_long_kernel(const T* dy, const T* x, const W* weight, const float* rstd, const T* dr,
                         T* dx, float* partial, int64_t rows, int64_t columns) {
  float* sums = partial ? partial + blockIdx.x * columns : nullptr;
  for (int64_t i = threadIdx.x; sums && i < columns; i += kThreads) sums[i] = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t start = row * columns;
    const float factor = rstd[row];
    float products = 0;
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      products += widen(dy[start + i]) * widen(weight[i]) * widen(x[start + i]);
    }
    const float along_x = block_sum(products) * factor * factor / static_cast<float>(columns);
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      const float g = widen(dy[start + i]), v = widen(x[start + i]);
      if (sums) sums[i] += g * (v * factor);
      const float result = (g * widen(weight[i]) - v * along_x) * factor;
      dx[start + i] = narrow<T>(dr ? result + widen(dr[start + i]) : result);
    }
  }
}

// weight_grad (columns) += Σ partial (blocks, columns): eight threads share a column's blocks, then
// add up in order.
constexpr int kSlices = 8;
__global__ void __launch_bounds__(32 * kSlices)
    add_partials_kernel(const float* __restrict__ partial, float* __restrict__ weight_grad,
                        int blocks, int64_t columns) {
  __shared__ float sums[kSlices][32];
  const int slice = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int b = slice; b < blocks; b += kSlices) sum += partial[b * columns + column];
  }
  sums[slice][lane] = sum;
  __syncthreads();
  if (slice == 0 && column < columns) {
    float total = weight_grad[column];
#pragma unroll
    for (int s = 0; s < kSlices; ++s) total += sums[s][lane];
    weight_grad[column] = total;
  }
}

// ---- launchers ----------------------------------------------------------------------------------

// Calls body.operator()<vectors>() with the smallest power of two of 16-byte vectors per lane that
// holds a row in a warp; returns false if there is none.
template <class T, class Body>
bool with_row_in_registers(int64_t columns, std::initializer_list<const void*> pointers,
                           const Body& body) {
  if (columns % kVector<T> != 0 || !aligned16(pointers)) return false;
  const int64_t vectors = columns / kVector<T>;
  if (vectors <= 32) return body.template operator()<1>(), true;
  if (vectors <= 64) return body.template operator()<2>(), true;
  if (vectors <= 128) return body.template operator()<4>(), true;
  if (vectors <= 256) return body.template operator()<8>(), true;
  return false;
}

template <class T, class W>
void forward(CudaStream& cuda, const T* x, const T* skip, const W* weight, T* r, T* y, float* rstd,
             NormSize size, float eps) {
  if (size.rows == 0) return;
  const auto [rows, columns] = size;
  const bool done = with_row_in_registers<T>(columns, {x, skip, weight, r, y}, [&]<int kVectors>() {
    const auto kernel =
        skip ? forward_kernel<T, W, kVectors, true> : forward_kernel<T, W, kVectors, false>;
    kernel<<<blocks_for(cuda, rows, kWarps), kBlock, 0, cuda.compute()>>>(
        x, skip, weight, r, y, rstd, rows, static_cast<int>(columns), eps);
  });
  if (!done) {
    forward_long_kernel<<<blocks_for(cuda, rows, 1), kThreads, 0, cuda.compute()>>>(
        x, skip, weight, r, y, rstd, rows, columns, eps);
  }
  check_launch();
}

template <class T, class W>
void backward(CudaStream& cuda, const T* dy, const T* x, const W* weight, const float* rstd,
              const T* dr, T* dx, float* weight_grad, NormSize size) {
  if (size.rows == 0) return;
  const auto [rows, columns] = size;
  // The registers let this many blocks run at once, and each block leaves a partial sum.
  const int64_t most = (columns > 128 * kVector<T> ? 2 : 4) * cuda.multiprocessors();
  const int64_t rows_per_block = std::max<int64_t>(kWarps, (rows + most - 1) / most);
  const int blocks = static_cast<int>((rows + rows_per_block - 1) / rows_per_block);
  const Scratch scratch(cuda,
                        weight_grad ? static_cast<size_t>(blocks) * columns * sizeof(float) : 0);
  float* partial = weight_grad ? scratch.as<float>() : nullptr;
  const bool done = with_row_in_registers<T>(columns, {dy, x, weight, dr, dx}, [&]<int kVectors>() {
    const auto kernel = weight_grad ? (dr ? backward_kernel<T, W, kVectors, true, true>
                                          : backward_kernel<T, W, kVectors, false, true>)
                                    : (dr ? backward_kernel<T, W, kVectors, true, false>
                                          : backward_kernel<T, W, kVectors, false, false>);
    kernel<<<blocks, kBlock, 0, cuda.compute()>>>(dy, x, weight, rstd, dr, dx, partial, rows,
                                                  static_cast<int>(columns));
  });
  if (!done) {
    backward_long_kernel<<<blocks, kThreads, 0, cuda.compute()>>>(dy, x, weight, rstd, dr, dx,
                                                                  partial, rows, columns);
  }
  check_launch();
  if (!weight_grad) return;
  add_partials_kernel<<<static_cast<unsigned>((columns + 31) / 32), 32 * kSlices, 0,
                        cuda.compute()>>>(partial, weight_grad, blocks, columns);
  check_launch();
}

}  // namespace

void rms_norm_forward(Stream& stream, In x, In weight, Out y, Out rstd, double eps) {
  const NormSize size = check_rms_norm_forward(x, weight, y, rstd);
  with_float("x", x, [&]<class T>() {
    with_float("weight", weight, [&]<class W>() {
      forward<T, W>(on_cuda(stream), x.data<T>(), nullptr, weight.data<W>(), nullptr, y.data<T>(),
                    rstd.data<float>(), size, static_cast<float>(eps));
    });
  });
}

void add_rms_norm_forward(Stream& stream, In x, In skip, In weight, Out r, Out y, Out rstd,
                          double eps) {
  const NormSize size = check_add_rms_norm_forward(x, skip, weight, r, y, rstd);
  with_float("x", x, [&]<class T>() {
    with_float("weight", weight, [&]<class W>() {
      forward<T, W>(on_cuda(stream), x.data<T>(), skip.data<T>(), weight.data<W>(), r.data<T>(),
                    y.data<T>(), rstd.data<float>(), size, static_cast<float>(eps));
    });
  });
}

void rms_norm_backward(Stream& stream, In dy, In x, In weight, In rstd, std::optional<In> dr,
                       Out dx, std::optional<InOut> weight_grad) {
  const NormSize size = check_rms_norm_backward(dy, x, weight, rstd, dr, dx, weight_grad);
  with_float("x", x, [&]<class T>() {
    with_float("weight", weight, [&]<class W>() {
      backward<T, W>(on_cuda(stream), dy.data<T>(), x.data<T>(), weight.data<W>(),
                     rstd.data<float>(), dr ? dr->data<T>() : nullptr, dx.data<T>(),
                     weight_grad ? weight_grad->data<float>() : nullptr, size);
    });
  });
}

}  // namespace llamaforge::cuda

// Causal attention in f32 arithmetic for any head size and bf16 or f32 tensors: the f32 mode, and
// head sizes that the tensor core kernels do not take. Tiles of kTile queries and keys are in
// shared memory, and the backward pass is split in two as elsewhere. Maxima are subtracted before
// scores are scaled: see kLargeScore. The sums of a query (or of a key) belong to one block and run
// in one order, so results are deterministic.
#include "cuda/attention/first_key.cuh"
#include "cuda/runtime/cuda_error.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {
namespace {

constexpr int kPlainThreads = 256;

// Shared memory of a block: `count` tiles of (kTile, head size), and two tiles of scores. Rows are
// padded by one word.
template <int kTile>
struct Layout {
  int stride;
  __host__ __device__ explicit Layout(int head_size) : stride(head_size | 1) {}
  __host__ __device__ int tile() const { return kTile * stride; }
  __host__ __device__ static constexpr int scores() { return kTile * (kTile + 1); }
  size_t bytes(int tiles) const {
    return (static_cast<size_t>(tiles) * tile() + 2 * scores()) * sizeof(float);
  }
};

// Loads the rows from `first` on of a tensor whose rows are `stride` apart; rows beyond `rows`
// become zeros.
template <int kTile, class T>
__device__ void fetch(const Layout<kTile>& layout, float* to, const T* from, size_t stride,
                      int first, int rows, int size) {
  for (int i = threadIdx.x; i < kTile * size; i += kPlainThreads) {
    const int row = i / size, column = i % size;
    to[row * layout.stride + column] =
        first + row < rows ? widen(from[(first + row) * stride + column]) : 0.0f;
  }
}
template <int kTile>
__device__ void clear(const Layout<kTile>& layout, float* tile) {
  for (int i = threadIdx.x; i < layout.tile(); i += kPlainThreads) tile[i] = 0;
}
template <int kTile, class T>
__device__ void write(const Layout<kTile>& layout, const float* tile, T* to, size_t stride,
                      int first, int rows, int size, float factor) {
  for (int i = threadIdx.x; i < kTile * size; i += kPlainThreads) {
    const int row = i / size, column = i % size;
    if (first + row < rows)
      to[(first + row) * stride + column] = narrow<T>(tile[row * layout.stride + column] * factor);
  }
}
// scores (row of a, row of b) = a · bᵀ
template <int kTile>
__device__ void multiply(const Layout<kTile>& layout, const float* a, const float* b, float* scores,
                         int size) {
  for (int i = threadIdx.x; i < kTile * kTile; i += kPlainThreads) {
    const int row = i / kTile, column = i % kTile;
    float sum = 0;
    for (int d = 0; d < size; ++d)
      sum += a[row * layout.stride + d] * b[column * layout.stride + d];
    scores[row * (kTile + 1) + column] = sum;
  }
}
// sum (row, d) += scores (row, j) · b (j, d), or with kTransposed scores (j, row)
template <bool kTransposed, int kTile>
__device__ void accumulate(const Layout<kTile>& layout, const float* scores, const float* b,
                           float* sum, int size) {
  for (int i = threadIdx.x; i < kTile * size; i += kPlainThreads) {
    const int row = i / size, column = i % size;
    float total = sum[row * layout.stride + column];
#pragma unroll 8
    for (int j = 0; j < kTile; ++j) {
      total += scores[kTransposed ? j * (kTile + 1) + row : row * (kTile + 1) + j] *
               b[j * layout.stride + column];
    }
    sum[row * layout.stride + column] = total;
  }
}

template <int kTile, bool kFirstKey, class T>
__global__ void __launch_bounds__(kPlainThreads)
    attention_forward_plain_kernel(const T* __restrict__ qkv, T* __restrict__ o,
                                   float* __restrict__ statistics, const AttentionCall call) {
  extern __shared__ float memory[];
  const int size = call.head_size, first = (gridDim.y - 1 - blockIdx.y) * kTile;
  const Layout<kTile> layout(size);
  float *query = memory, *key = query + layout.tile(), *out = key + layout.tile(),
        *scores = out + layout.tile();
  __shared__ float maximum[kTile], sum[kTile], factor[kTile];
  const int batch = blockIdx.x / call.heads, head = blockIdx.x % call.heads;
  const size_t stride = call.width(), line = static_cast<size_t>(batch) * call.time * stride;
  const T* keys = qkv + line + (call.heads + head / call.group()) * size;
  const T* values = keys + call.kv_heads * size;
  constexpr int kLanes = kPlainThreads / kTile;  // neighbouring lanes that share a row: 8 or 16
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int first_start = kFirstKey ? first_key(call, batch, first) / kTile * kTile : 0;
  // The first key of this thread's row.
  const int from = kFirstKey ? first_key(call, batch, first + row) : 0;
  fetch(layout, query, qkv + line + head * size, stride, first, call.time, size);
  clear(layout, out);
  if (threadIdx.x < kTile) {
    maximum[threadIdx.x] = -INFINITY;
    sum[threadIdx.x] = 0;
  }
  for (int start = first_start; start <= first; start += kTile) {
    __syncthreads();
    fetch(layout, key, keys, stride, start, call.time, size);
    __syncthreads();
    multiply(layout, query, key, scores, size);
    __syncthreads();
    float highest = maximum[row], total = 0;
    for (int j = lane; j < kTile; j += kLanes) {
      float& s = scores[row * (kTile + 1) + j];
      s = start + j > first + row || start + j < from ? -INFINITY : s;
      highest = Maximum{}(highest, s);
    }
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      highest = Maximum{}(highest, __shfl_xor_sync(~0u, highest, distance));
    }
    // The row has no maximum if it has seen no key yet (its first key comes later), or only scores
    // of -inf.
    const float reference = highest == -INFINITY ? 0.0f : highest;
    for (int j = lane; j < kTile; j += kLanes) {
      float& s = scores[row * (kTile + 1) + j];
      s = s == -INFINITY ? 0.0f : expf((s - reference) * call.scale);
      total += s;
    }
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
      total += __shfl_xor_sync(~0u, total, distance);
    if (lane == 0) {
      factor[row] =
          maximum[row] == -INFINITY ? 0.0f : expf((maximum[row] - reference) * call.scale);
      sum[row] = sum[row] * factor[row] + total;
      maximum[row] = highest;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < layout.tile(); i += kPlainThreads)
      out[i] *= factor[i / layout.stride];
    fetch(layout, key, values, stride, start, call.time, size);
    __syncthreads();
    accumulate<false>(layout, scores, key, out, size);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < layout.tile(); i += kPlainThreads) out[i] /= sum[i / layout.stride];
  __syncthreads();
  write(layout, out, o + (static_cast<size_t>(batch) * call.time * call.heads + head) * size,
        static_cast<size_t>(call.heads) * size, first, call.time, size, 1.0f);
  if (threadIdx.x < kTile && first + static_cast<int>(threadIdx.x) < call.time) {
    write_row(statistics, call, blockIdx.x, first + threadIdx.x, maximum[threadIdx.x],
              sum[threadIdx.x]);
  }
}

// Turns s = q kᵀ and d_p = dO vᵀ of a tile into p and dS.
template <int kTile, bool kFirstKey>
__device__ void softmax_gradient(float* s, float* d_p, int first_query, int key_tile, size_t line,
                                 const AttentionStatistics& statistics, const AttentionCall& call) {
  for (int i = threadIdx.x; i < kTile * kTile; i += kPlainThreads) {
    const int row = i / kTile, column = i % kTile, at = row * (kTile + 1) + column,
              query = first_query + row;
    const int key = key_tile + column;
    const bool seen =
        key <= query && query < call.time &&
        (!kFirstKey || key >= first_key(call, static_cast<int>(line) / call.heads, query));
    const size_t of_row = line * call.padded_time() + query;
    const float2 exact = exact_row(statistics, call, line, query);
    const float p = seen ? exp2f(fmaf(s[at] - exact.x, call.scale * kLog2E, -exact.y)) : 0.0f;
    s[at] = p;
    d_p[at] = seen ? p * (d_p[at] - statistics.row_sum[of_row]) : 0.0f;
  }
}

template <int kTile, bool kFirstKey, class T>
__global__ void __launch_bounds__(kPlainThreads)
    attention_query_gradient_plain_kernel(const T* __restrict__ d_o, const T* __restrict__ qkv,
                                          const AttentionStatistics statistics,
                                          T* __restrict__ dqkv, const AttentionCall call) {
  extern __shared__ float memory[];
  const int size = call.head_size, first = (gridDim.y - 1 - blockIdx.y) * kTile;
  const Layout<kTile> layout(size);
  float *query = memory, *d_output = query + layout.tile(), *key = d_output + layout.tile(),
        *value = key + layout.tile();
  float *dq = value + layout.tile(), *s = dq + layout.tile(), *d_p = s + layout.scores();
  const int batch = blockIdx.x / call.heads, head = blockIdx.x % call.heads;
  const size_t stride = call.width(), line = static_cast<size_t>(batch) * call.time * stride;
  const T* keys = qkv + line + (call.heads + head / call.group()) * size;
  const T* values = keys + call.kv_heads * size;
  fetch(layout, query, qkv + line + head * size, stride, first, call.time, size);
  fetch(layout, d_output, d_o + (static_cast<size_t>(batch) * call.time * call.heads + head) * size,
        static_cast<size_t>(call.heads) * size, first, call.time, size);
  clear(layout, dq);
  const int first_start = kFirstKey ? first_key(call, batch, first) / kTile * kTile : 0;
  for (int start = first_start; start <= first; start += kTile) {
    __syncthreads();
    fetch(layout, key, keys, stride, start, call.time, size);
    fetch(layout, value, values, stride, start, call.time, size);
    __syncthreads();
    multiply(layout, query, key, s, size);
    multiply(layout, d_output, value, d_p, size);
    __syncthreads();
    softmax_gradient<kTile, kFirstKey>(s, d_p, first, start, blockIdx.x, statistics, call);
    __syncthreads();
    accumulate<false>(layout, d_p, key, dq, size);
  }
  __syncthreads();
  write(layout, dq, dqkv + line + head * size, stride, first, call.time, size, call.scale);
}

template <int kTile, bool kFirstKey, class T>
__global__ void __launch_bounds__(kPlainThreads)
    attention_key_gradient_plain_kernel(const T* __restrict__ d_o, const T* __restrict__ qkv,
                                        const AttentionStatistics statistics, T* __restrict__ dqkv,
                                        const AttentionCall call) {
  extern __shared__ float memory[];
  const int size = call.head_size, first = blockIdx.y * kTile;
  const Layout<kTile> layout(size);
  float *key = memory, *value = key + layout.tile(), *query = value + layout.tile(),
        *d_output = query + layout.tile();
  float *dk = d_output + layout.tile(), *dv = dk + layout.tile(), *s = dv + layout.tile(),
        *d_p = s + layout.scores();
  const int batch = blockIdx.x / call.kv_heads, kv_head = blockIdx.x % call.kv_heads;
  const size_t stride = call.width(), line = static_cast<size_t>(batch) * call.time * stride;
  const size_t key_at = line + (call.heads + kv_head) * size,
               value_at = key_at + call.kv_heads * size;
  fetch(layout, key, qkv + key_at, stride, first, call.time, size);
  fetch(layout, value, qkv + value_at, stride, first, call.time, size);
  clear(layout, dk);
  clear(layout, dv);
  const int end =
      kFirstKey ? end_of_queries(call, batch, first, min(first + kTile, call.time) - 1) : call.time;
  for (int head = kv_head * call.group(); head < (kv_head + 1) * call.group(); ++head) {
    for (int start = first; start < end; start += kTile) {
      __syncthreads();
      fetch(layout, query, qkv + line + head * size, stride, start, call.time, size);
      fetch(layout, d_output,
            d_o + (static_cast<size_t>(batch) * call.time * call.heads + head) * size,
            static_cast<size_t>(call.heads) * size, start, call.time, size);
      __syncthreads();
      multiply(layout, query, key, s, size);
      multiply(layout, d_output, value, d_p, size);
      __syncthreads();
      softmax_gradient<kTile, kFirstKey>(
          s, d_p, start, first, static_cast<size_t>(batch) * call.heads + head, statistics, call);
      __syncthreads();
      accumulate<true>(layout, s, d_output, dv, size);
      accumulate<true>(layout, d_p, query, dk, size);
    }
  }
  __syncthreads();
  write(layout, dk, dqkv + key_at, stride, first, call.time, size, call.scale);
  write(layout, dv, dqkv + value_at, stride, first, call.time, size, 1.0f);
}

// Calls body.operator()<tile, first key>() with the larger tile size for which `tiles` tiles fit a
// block's shared memory.
template <class Body>
void with_tile(const AttentionCall& call, int tiles, const Body& body) {
  int device, most;
  LF_CUDA_CHECK(cudaGetDevice(&device));
  LF_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  // The kernels use 1024 bytes themselves.
  const size_t available = static_cast<size_t>(most) - 1024;
  const bool large = Layout<32>(call.head_size).bytes(tiles) <= available;
  LF_CHECK(large || Layout<16>(call.head_size).bytes(tiles) <= available,
           "head size {} is too large for this GPU", call.head_size);
  if (call.first_key)
    return large ? body.template operator()<32, true>() : body.template operator()<16, true>();
  large ? body.template operator()<32, false>() : body.template operator()<16, false>();
}

template <int kTile, class Kernel, class... Arguments>
void launch(Kernel kernel, int lines, int tiles, const AttentionCall& call,
            Arguments... arguments) {
  constexpr int kMostBlocks = 65535;  // limit of a grid's second axis
  const int bytes = static_cast<int>(Layout<kTile>(call.head_size).bytes(tiles)),
            blocks = (call.time + kTile - 1) / kTile;
  LF_CHECK(blocks <= kMostBlocks,
           "attention with head size {} takes at most {} tokens a row on this GPU, got {}",
           call.head_size, kMostBlocks * kTile, call.time);
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<dim3(lines, blocks), kPlainThreads, bytes, call.stream>>>(arguments..., call);
  check_launch();
}

}  // namespace

template <class T>
void attention_forward_plain(const AttentionCall& call, const T* qkv, T* o, float* statistics) {
  with_tile(call, 3, [&]<int kTile, bool kFirstKey>() {
    launch<kTile>(attention_forward_plain_kernel<kTile, kFirstKey, T>, call.batch * call.heads, 3,
                  call, qkv, o, statistics);
  });
}

template <class T>
void attention_backward_plain(const AttentionCall& call, const T* d_o, const T* qkv,
                              AttentionStatistics statistics, T* dqkv) {
  with_tile(call, 5, [&]<int kTile, bool kFirstKey>() {
    launch<kTile>(attention_query_gradient_plain_kernel<kTile, kFirstKey, T>,
                  call.batch * call.heads, 5, call, d_o, qkv, statistics, dqkv);
  });
  with_tile(call, 6, [&]<int kTile, bool kFirstKey>() {
    launch<kTile>(attention_key_gradient_plain_kernel<kTile, kFirstKey, T>,
                  call.batch * call.kv_heads, 6, call, d_o, qkv, statistics, dqkv);
  });
}

template void attention_forward_plain(const AttentionCall&, const float*, float*, float*);
template void attention_forward_plain(const AttentionCall&, const bfloat16*, bfloat16*, float*);
template void attention_backward_plain(const AttentionCall&, const float*, const float*,
                                       AttentionStatistics, float*);
template void attention_backward_plain(const AttentionCall&, const bfloat16*, const bfloat16*,
                                       AttentionStatistics, bfloat16*);

}  // namespace llamaforge::cuda

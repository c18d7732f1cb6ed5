// Attention of new tokens over a cache of keys and values, for generation.
//
//   qkv (B,T,(H+2KV)·hd), cache (B,2,KV,Tmax,hd): rows position .. position+T-1 of the cache become the new k and v;
//   o[t] = softmax(scale · q[t] · kᵀ) · v over cache rows 0 .. position+t.
//
// With one token the time goes into reading the cache once, so its rows are cut into splits, as in Flash-Decoding (Dao et
// al. 2023): a block has one query row and one split and keeps a running maximum, sum and weighted values; a second kernel
// joins the splits in their order. A prompt from the beginning is the causal attention of training: that kernel does it.
// Scores, softmax and sums are f32. How rows are cut depends on the shapes and the position alone.
#include <cmath>
#include <memory>

#include "cuda/cuda_ops.h"
#include "cuda/launch.h"

namespace llamaforge::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kAtOnce = 4;            // cached rows that a warp has on the way
constexpr int kMostPerLane = 8;       // numbers of a head that a lane holds: head sizes up to 256
constexpr int64_t kSplitRows = 64;    // of the cache, at least
constexpr int64_t kMostBlocks = 4096;
constexpr int64_t kPromptRows = 16;   // from here on training's kernel is faster

struct Shapes {
  int64_t batch, time, heads, kv_heads, head_size, position, capacity;
  float scale;
  int64_t splits, split_rows;
  __host__ __device__ int64_t stride() const { return (heads + 2 * kv_heads) * head_size; }
};

template <class T> __global__ void append_kernel(const T* qkv, T* cache, Shapes s, int64_t n) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t d = i % s.head_size, head = i / s.head_size % (2 * s.kv_heads);
    const int64_t token = i / s.head_size / (2 * s.kv_heads), b = token / s.time, t = token % s.time;
    cache[((b * 2 * s.kv_heads + head) * s.capacity + s.position + t) * s.head_size + d] =
        qkv[token * s.stride() + (s.heads + head) * s.head_size + d];
  }
}

// Of one query row over one split, for `part`: maximum, sum, then head_size weighted values.
template <int kPerLane, class T>
__global__ void __launch_bounds__(kWarps * 32) attend_kernel(const T* qkv, const T* cache, float* parts, Shapes s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t split = blockIdx.x % s.splits, row = blockIdx.x / s.splits;  // row: (b, head, t)
  const int64_t t = row % s.time, head = row / s.time % s.heads, b = row / s.time / s.heads;
  const int64_t kv = head / (s.heads / s.kv_heads), visible = s.position + t + 1;
  const T* query = qkv + (b * s.time + t) * s.stride() + head * s.head_size;
  const T* keys = cache + (b * 2 * s.kv_heads + kv) * s.capacity * s.head_size;
  const T* values = keys + s.kv_heads * s.capacity * s.head_size;

  float q[kPerLane], sum_of_values[kPerLane] = {};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = i * 32 + lane;
    q[i] = d < s.head_size ? widen(query[d]) * s.scale : 0.0f;
  }
  float highest = Maximum::identity(), sum = 0;
  const int64_t end = min(visible, (split + 1) * s.split_rows);
  for (int64_t first = split * s.split_rows + warp * kAtOnce; first < end; first += kWarps * kAtOnce) {
    float score[kAtOnce], value[kAtOnce][kPerLane];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int64_t at = min(first + r, end - 1) * s.head_size;
      score[r] = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int d = i * 32 + lane;
        const bool inside = d < s.head_size;
        score[r] += inside ? q[i] * widen(keys[at + d]) : 0.0f;
        value[r][i] = inside ? widen(values[at + d]) : 0.0f;
      }
    }
    float top = highest;
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      score[r] = first + r < end ? warp_sum(score[r]) : Maximum::identity();
      top = Maximum{}(top, score[r]);
    }
    const float shrink = expf(highest - top);
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum_of_values[i] *= shrink;
    highest = top;
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const float p = expf(score[r] - highest);
      sum += p;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) sum_of_values[i] += p * value[r][i];
    }
  }

  // The warps' results, joined in their order.
  __shared__ float warp_highest[kWarps], warp_sum_of[kWarps], warp_values[kWarps][kPerLane * 32];
  if (lane == 0) {
    warp_highest[warp] = highest;
    warp_sum_of[warp] = sum;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) warp_values[warp][i * 32 + lane] = sum_of_values[i];
  __syncthreads();
  float top = warp_highest[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) top = Maximum{}(top, warp_highest[w]);
  float* part = parts + int64_t{blockIdx.x} * (s.head_size + 2);
  auto weight = [&](int w) { return warp_highest[w] == Maximum::identity() ? 0.0f : expf(warp_highest[w] - top); };
  for (int d = threadIdx.x; d < s.head_size; d += blockDim.x) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += weight(w) * warp_values[w][d];
    part[2 + d] = total;
  }
  if (threadIdx.x == 0) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += weight(w) * warp_sum_of[w];
    part[0] = top;
    part[1] = total;
  }
}

// o (B,T,H,hd) from the splits of each row.
template <class T> __global__ void join_kernel(const float* parts, T* o, Shapes s) {
  const int64_t row = blockIdx.x;
  const int64_t t = row % s.time, head = row / s.time % s.heads, b = row / s.time / s.heads;
  const int64_t size = s.head_size + 2;
  const int64_t used = (s.position + t) / s.split_rows + 1;  // splits with a visible row
  const float* own = parts + row * s.splits * size;
  float top = own[0];
  for (int64_t split = 1; split < used; ++split) top = Maximum{}(top, own[split * size]);
  float sum = 0;
  for (int64_t split = 0; split < used; ++split) sum += expf(own[split * size] - top) * own[split * size + 1];
  T* out = o + ((b * s.time + t) * s.heads + head) * s.head_size;
  for (int d = threadIdx.x; d < s.head_size; d += blockDim.x) {
    float total = 0;
    for (int64_t split = 0; split < used; ++split) total += expf(own[split * size] - top) * own[split * size + 2 + d];
    out[d] = narrow<T>(total / sum);
  }
}

template <class T> void attend(CudaStream& cuda, const T* qkv, const T* cache, T* o, Shapes s) {
  const int64_t rows = s.batch * s.heads * s.time, longest = s.position + s.time;
  const int64_t wanted = std::clamp<int64_t>(kMostBlocks / rows, 1, (longest + kSplitRows - 1) / kSplitRows);
  s.split_rows = (longest + wanted - 1) / wanted;
  s.splits = (longest + s.split_rows - 1) / s.split_rows;
  LF_CHECK(rows * s.splits <= INT32_MAX, "{} rows of queries are too many", rows);
  const Scratch parts(cuda, static_cast<size_t>(rows * s.splits * (s.head_size + 2)) * sizeof(float));
  const auto blocks = static_cast<unsigned>(rows * s.splits);
  auto with = [&](auto per_lane) {
    attend_kernel<per_lane.value><<<blocks, kWarps * 32, 0, cuda.compute()>>>(qkv, cache, parts.as<float>(), s);
  };
  switch ((s.head_size + 31) / 32) {
    case 1: with(std::integral_constant<int, 1>{}); break;
    case 2: with(std::integral_constant<int, 2>{}); break;
    case 3: with(std::integral_constant<int, 3>{}); break;
    case 4: with(std::integral_constant<int, 4>{}); break;
    default: with(std::integral_constant<int, kMostPerLane>{});
  }
  check_launch();
  join_kernel<<<static_cast<unsigned>(rows), 64, 0, cuda.compute()>>>(parts.as<float>(), o, s);
  check_launch();
}

}  // namespace

void attention_cached(Stream& stream, In qkv, InOut cache, Out o, int64_t heads, int64_t kv_heads, int64_t position,
                      double scale) {
  check_float("qkv", qkv);
  LF_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "kv heads {} do not divide heads {}", kv_heads, heads);
  LF_CHECK(qkv.rank() == 3 && qkv.dim(2) % (heads + 2 * kv_heads) == 0,
           "expected qkv of shape (B,T,({}+2·{})·head size), got {}", heads, kv_heads, to_string(qkv.shape));
  LF_CHECK(std::isfinite(scale) && scale > 0, "expected a positive scale, got {}", scale);
  const int64_t batch = qkv.dim(0), time = qkv.dim(1), head_size = qkv.dim(2) / (heads + 2 * kv_heads);
  LF_CHECK(head_size <= kMostPerLane * 32, "heads of {} are larger than {}", head_size, kMostPerLane * 32);
  check_dtype("cache", cache, qkv.dtype);
  check_dtype("o", o, qkv.dtype);
  check_shape("o", o, {batch, time, heads * head_size});
  LF_CHECK(cache.rank() == 5 && cache.dim(0) == batch && cache.dim(1) == 2 && cache.dim(2) == kv_heads &&
               cache.dim(4) == head_size,
           "expected cache of shape ({},2,{},capacity,{}), got {}", batch, kv_heads, head_size, to_string(cache.shape));
  LF_CHECK(position >= 0 && position + time <= cache.dim(3), "positions {} to {} are not in the cache of {}", position,
           position + time - 1, cache.dim(3));
  CudaStream& cuda = on_cuda(stream);
  const Shapes shapes = {batch, time, heads, kv_heads, head_size, position, cache.dim(3), static_cast<float>(scale), 1, 1};
  const int64_t appended = batch * time * 2 * kv_heads * head_size;
  with_float("qkv", qkv, [&]<class T>() {
    append_kernel<<<blocks_for(cuda, appended), kThreads, 0, cuda.compute()>>>(qkv.data<T>(), cache.data<T>(), shapes, appended);
    check_launch();
    if (position == 0 && time >= kPromptRows) {
      Out lse;
      lse.shape = {batch, heads, time};
      lse.storage = std::make_shared<Storage>(qkv.storage->shared_stream(), lse.bytes());
      lse.storage->allocate();
      return attention_forward(stream, qkv, o, lse, heads, kv_heads, scale);
    }
    attend<T>(cuda, qkv.data<T>(), cache.data<T>(), o.data<T>(), shapes);
  });
}

}  // namespace llamaforge::cuda

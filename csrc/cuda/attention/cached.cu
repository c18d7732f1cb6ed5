// Attention of new tokens over a cache of keys and values, for generation. The floor is the time to
// read the cache. A block has one token and one kv head, whose rows serve all query heads of the
// group, and walks a part of the visible rows. The parts are merged in order; splitting the rows
// lets a single token of a single sequence fill the GPU too.
//   qkv (B,T,(H+2KV)·hd), cache (B,2,KV,capacity,hd)
// A token's walk begins at its first key, wherever in a chunk that key lies, so no key needs a
// mask.
#include <algorithm>

#include "cuda/attention/attention_kernels.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {
namespace {

constexpr int kCachedThreads = 128;
constexpr int kChunk = 32;  // keys at a time, one per lane
// Bytes between rows in shared memory, so that lanes that each read a row hit different banks.
constexpr int kPad = 16;

template <class T>
__global__ void append_kernel(const T* __restrict__ qkv, T* __restrict__ cache, const AttentionCall call, int position,
                              int capacity) {
  const int64_t row = int64_t{call.kv_heads} * call.head_size, count = int64_t{call.batch} * call.time * 2 * row;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t token = i / (2 * row), batch = token / call.time, time = token % call.time;
    // Heads count keys first, then values.
    const int64_t head = i % (2 * row) / call.head_size, column = i % call.head_size;
    cache[((batch * 2 * call.kv_heads + head) * capacity + position + time) * call.head_size + column] =
        qkv[token * call.width() + int64_t{call.heads} * call.head_size + i % (2 * row)];
  }
}

// Per (token, head, part): the maximum, the sum and the unnormalised output of a part of the rows.
struct Partial {
  float *maximum, *sum, *output;
};

template <class T>
__host__ __device__ int row_pitch(int size) {
  return size * static_cast<int>(sizeof(T)) + kPad;
}

// Copies `count` rows of `size` elements into shared memory, in 16-byte accesses where they fit.
template <class T>
__device__ __forceinline__ void fetch_rows(const T* from, char* to, int count, int size, bool packs) {
  const int pitch = row_pitch<T>(size), per_row = packs ? size / kVector<T> : size;
#pragma unroll 4
  for (int i = threadIdx.x; i < count * per_row; i += kCachedThreads) {
    const int row = i / per_row, column = i % per_row;
    if (packs) {
      *reinterpret_cast<uint4*>(to + row * pitch + column * 16) =
          *reinterpret_cast<const uint4*>(from + int64_t{row} * size + column * kVector<T>);
    } else {
      *reinterpret_cast<T*>(to + row * pitch + column * static_cast<int>(sizeof(T))) =
          from[int64_t{row} * size + column];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kCachedThreads)
    cached_kernel(const T* __restrict__ qkv, const T* __restrict__ cache, const Partial partial,
                  const AttentionCall call, int position, int capacity, int chunks_per_part, bool packs) {
  extern __shared__ uint4 shared[];
  const int group = call.group(), size = call.head_size, elements = group * size, pitch = row_pitch<T>(size);
  char* const key_rows = reinterpret_cast<char*>(shared);
  char* const value_rows = key_rows + kChunk * pitch;
  auto* query = reinterpret_cast<float*>(value_rows + kChunk * pitch);
  float *out = query + elements, *scores = out + elements;  // scores (group, kChunk)
  float *maximum = scores + group * kChunk, *sum = maximum + group, *factor = sum + group;
  const int part = blockIdx.z, parts = gridDim.z, kv_head = blockIdx.y, lane = threadIdx.x % 32;
  const int token = blockIdx.x, batch = token / call.time, visible = position + token % call.time + 1;
  const T* new_query = qkv + static_cast<size_t>(token) * call.width() + kv_head * elements;
  const T* keys = cache + (static_cast<size_t>(batch) * 2 * call.kv_heads + kv_head) * capacity * size;
  const T* values = keys + static_cast<size_t>(call.kv_heads) * capacity * size;
  for (int i = threadIdx.x; i < elements; i += kCachedThreads) {
    query[i] = widen(new_query[i]) * call.scale;
    out[i] = 0;
  }
  for (int g = threadIdx.x; g < group; g += kCachedThreads) {
    maximum[g] = -INFINITY;
    sum[g] = 0;
  }
  // A part without visible rows goes straight to its results, which other threads write.
  __syncthreads();

  const int first = part * chunks_per_part * kChunk, end = min(visible, first + chunks_per_part * kChunk);
  const int from = call.first_key ? max(first, min(call.first_key[token], visible - 1)) : first;
  for (int start = from; start < end; start += kChunk) {
    const int count = min(kChunk, end - start);
    fetch_rows(keys + static_cast<size_t>(start) * size, key_rows, count, size, packs);
    fetch_rows(values + static_cast<size_t>(start) * size, value_rows, count, size, packs);
    __syncthreads();
    // Each warp takes a query head, and each of its lanes a key.
    const auto* key = reinterpret_cast<const T*>(key_rows + min(lane, count - 1) * pitch);
    for (int g = threadIdx.x / 32; g < group; g += kCachedThreads / 32) {
      const float* q = query + g * size;
      float dot[2] = {};
      if (packs) {
        constexpr int kCount = kVector<T>;
        for (int d = 0; d < size; d += kCount) {
          float k[kCount];
          load(key + d, k);
#pragma unroll
          for (int i = 0; i < kCount; ++i) dot[i % 2] += q[d + i] * k[i];
        }
      } else {
        for (int d = 0; d < size; ++d) dot[0] += q[d] * widen(key[d]);
      }
      const float score = lane < count ? dot[0] + dot[1] : -INFINITY;
      const float highest = Maximum{}(warp_max(score), maximum[g]);
      const float weight = expf(score - highest), total = warp_sum(weight), rescale = expf(maximum[g] - highest);
      scores[g * kChunk + lane] = weight;
      __syncwarp();
      if (lane == 0) {
        factor[g] = rescale;
        sum[g] = sum[g] * rescale + total;
        maximum[g] = highest;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < elements; i += kCachedThreads) {
      const int g = i / size, d = i % size;
      const char* value = value_rows + d * static_cast<int>(sizeof(T));
      float total = out[i] * factor[g];
#pragma unroll 8
      for (int j = 0; j < count; ++j) {
        total += scores[g * kChunk + j] * widen(*reinterpret_cast<const T*>(value + j * pitch));
      }
      out[i] = total;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < elements; i += kCachedThreads) {
    const size_t line = (static_cast<size_t>(token) * call.heads + kv_head * group + i / size) * parts + part;
    partial.output[line * size + i % size] = out[i];
    if (i % size == 0) {
      partial.maximum[line] = maximum[i / size];
      partial.sum[line] = sum[i / size];
    }
  }
}

template <class T>
__global__ void merge_kernel(const Partial partial, T* __restrict__ o, int size, int parts) {
  let_next_start();
  const size_t line = blockIdx.x;  // token and head
  float highest = -INFINITY, sum = 0;
  for (int part = 0; part < parts; ++part) highest = Maximum{}(highest, partial.maximum[line * parts + part]);
  for (int part = 0; part < parts; ++part) {
    sum += partial.sum[line * parts + part] * expf(partial.maximum[line * parts + part] - highest);
  }
  for (int d = threadIdx.x; d < size; d += blockDim.x) {
    float total = 0;
    for (int part = 0; part < parts; ++part) {
      total += partial.output[(line * parts + part) * size + d] * expf(partial.maximum[line * parts + part] - highest);
    }
    o[line * size + d] = narrow<T>(total / sum);
  }
}

struct Parts {
  int count, chunks;  // number of parts; chunks in each
};
Parts parts_of(const AttentionCall& call, int position) {
  const int chunks = (position + call.time + kChunk - 1) / kChunk;
  const int64_t blocks = int64_t{call.batch} * call.time * call.kv_heads;
  const int wanted = static_cast<int>(std::clamp<int64_t>(4 * call.processors / blocks, 1, chunks));
  const int each = (chunks + wanted - 1) / wanted;
  return {(chunks + each - 1) / each, each};
}

}  // namespace

size_t attention_cached_scratch(const AttentionCall& call, int position) {
  return static_cast<size_t>(call.batch) * call.time * call.heads * parts_of(call, position).count *
         (call.head_size + 2) * sizeof(float);
}

template <class T>
void attention_append(const AttentionCall& call, const T* qkv, T* cache, int position, int capacity) {
  const int64_t count = int64_t{call.batch} * call.time * 2 * call.kv_heads * call.head_size;
  append_kernel<<<static_cast<unsigned>(std::min<int64_t>((count + 255) / 256, int64_t{call.processors} * 16)), 256, 0,
                  call.stream>>>(qkv, cache, call, position, capacity);
  check_launch();
}

template <class T>
void attention_cached(const AttentionCall& call, const T* qkv, const T* cache, T* o, float* scratch, int position,
                      int capacity) {
  const auto [parts, chunks] = parts_of(call, position);
  const int tokens = call.batch * call.time, group = call.group();
  const size_t lines = static_cast<size_t>(tokens) * call.heads * parts;
  const Partial partial = {scratch, scratch + lines, scratch + 2 * lines};
  const int size = call.head_size;
  const bool packs = size % kVector<T> == 0 && aligned16({cache});
  const int bytes =
      2 * kChunk * row_pitch<T>(size) + (2 * group * size + group * (kChunk + 3)) * static_cast<int>(sizeof(float));
  LF_CUDA_CHECK(cudaFuncSetAttribute(cached_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cached_kernel<<<dim3(tokens, call.kv_heads, parts), kCachedThreads, bytes, call.stream>>>(
      qkv, cache, partial, call, position, capacity, chunks, packs);
  check_launch();
  merge_kernel<<<static_cast<unsigned>(tokens * call.heads), 64, 0, call.stream>>>(partial, o, call.head_size, parts);
  check_launch();
}

#define LF_INSTANCES(T)                                                         \
  template void attention_append(const AttentionCall&, const T*, T*, int, int); \
  template void attention_cached(const AttentionCall&, const T*, const T*, T*, float*, int, int);
LF_INSTANCES(float)
LF_INSTANCES(bfloat16)

}  // namespace llamaforge::cuda

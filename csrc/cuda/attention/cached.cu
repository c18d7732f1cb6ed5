// Attention of new tokens over a cache of keys and values, for generation. The floor is the time to
// read the cache. A block has one token and one kv head, whose rows serve all query heads of the
// group, and walks a part of the visible rows. The parts are merged in order; splitting the rows
// lets a single token of a single sequence fill the GPU too.
//   qkv (B,T,(H+2KV)·hd), cache (B,2,KV,capacity,hd) or pages (P,2,KV,page,hd)
// A token's walk begins at its first key, wherever in a chunk that key lies, so no key needs a
// mask. The kernels find a token's rows through ContiguousRows (one cache a sequence) or PagedRows
// (an engine's pages).
#include <algorithm>

#include "cuda/attention/attention_kernels.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {
namespace {

constexpr int kCachedThreads = 128;
constexpr int kChunk = 32;  // keys at a time, one per lane
// Bytes between rows in shared memory, so that lanes that each read a row hit different banks.
constexpr int kPad = 16;

// The tokens (B,T) follow `position` tokens of their own sequence, b.
template <class T>
struct ContiguousRows {
  T* cache;
  int position, capacity;

  __device__ int visible(const AttentionCall& call, int token) const {
    return position + token % call.time + 1;
  }
  // Returns a row of a head; heads count keys first, then values.
  __device__ T* row(const AttentionCall& call, int token, int head, int index) const {
    return cache + ((int64_t{token / call.time} * 2 * call.kv_heads + head) * capacity + index) *
                       call.head_size;
  }
  // Returns how many of the next rows lie together.
  __device__ static int together(int) { return kChunk; }
};

// Each token names its sequence and position. Values outside the tensors are reported, and replaced
// by the nearest ones inside. `page` is a multiple of kChunk.
template <class T>
struct PagedRows {
  T* pages;
  const int32_t *table, *sequences, *positions;
  int count, table_width, pages_count, page;
  FaultSite wrong_sequence, wrong_position, wrong_page;

  __device__ static int inside(int value, int bound) { return max(0, min(value, bound - 1)); }
  __device__ int sequence_of(int token) const { return sequences ? sequences[token] : token; }
  __device__ void check(int token) const {
    const int sequence = sequence_of(token), position = positions[token];
    if (sequence < 0 || sequence >= count) report(wrong_sequence, sequence, token, count - 1);
    if (position < 0 || position >= table_width * page)
      report(wrong_position, position, token, table_width * page - 1);
    for (int i = 0; i <= inside(position, table_width * page) / page; ++i) {
      const int own = table[inside(sequence, count) * table_width + i];
      if (own < 0 || own >= pages_count) report(wrong_page, own, sequence, pages_count - 1);
    }
  }
  __device__ int visible(const AttentionCall&, int token) const {
    return inside(positions[token], table_width * page) + 1;
  }
  __device__ T* row(const AttentionCall& call, int token, int head, int index) const {
    const int own =
        inside(table[inside(sequence_of(token), count) * table_width + index / page], pages_count);
    return pages +
           ((int64_t{own} * 2 * call.kv_heads + head) * page + index % page) * call.head_size;
  }
  __device__ static int together(int index) { return kChunk - index % kChunk; }
};

template <class T, class Rows>
__global__ void append_kernel(const T* __restrict__ qkv, const Rows rows,
                              const AttentionCall call) {
  const int64_t row = int64_t{call.kv_heads} * call.head_size,
                count = int64_t{call.batch} * call.time * 2 * row;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int token = static_cast<int>(i / (2 * row));
    const int head = static_cast<int>(i % (2 * row) / call.head_size),
              column = static_cast<int>(i % call.head_size);
    if constexpr (requires { rows.check(token); }) {
      if (i % (2 * row) == 0) rows.check(token);
    }
    rows.row(call, token, head, rows.visible(call, token) - 1)[column] =
        qkv[token * int64_t{call.width()} + int64_t{call.heads} * call.head_size + i % (2 * row)];
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
__device__ __forceinline__ void fetch_rows(const T* from, char* to, int count, int size,
                                           bool packs) {
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

template <class T, class Rows>
__global__ void __launch_bounds__(kCachedThreads)
    cached_kernel(const T* __restrict__ qkv, const Rows rows, const Partial partial,
                  const AttentionCall call, int chunks_per_part, bool packs) {
  extern __shared__ uint4 shared[];
  const int group = call.group(), size = call.head_size, elements = group * size,
            pitch = row_pitch<T>(size);
  char* const key_rows = reinterpret_cast<char*>(shared);
  char* const value_rows = key_rows + kChunk * pitch;
  auto* query = reinterpret_cast<float*>(value_rows + kChunk * pitch);
  float *out = query + elements, *scores = out + elements;  // scores (group, kChunk)
  float *maximum = scores + group * kChunk, *sum = maximum + group, *factor = sum + group;
  const int part = blockIdx.z, parts = gridDim.z, kv_head = blockIdx.y, lane = threadIdx.x % 32;
  const int token = blockIdx.x, visible = rows.visible(call, token);
  const T* new_query = qkv + static_cast<size_t>(token) * call.width() + kv_head * elements;
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

  const int first = part * chunks_per_part * kChunk,
            end = min(visible, first + chunks_per_part * kChunk);
  const int from = call.first_key ? max(first, min(call.first_key[token], visible - 1)) : first;
  for (int start = from, count; start < end; start += count) {
    count = min(rows.together(start), end - start);
    fetch_rows<T>(rows.row(call, token, kv_head, start), key_rows, count, size, packs);
    fetch_rows<T>(rows.row(call, token, call.kv_heads + kv_head, start), value_rows, count, size,
                  packs);
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
      const float weight = expf(score - highest), total = warp_sum(weight),
                  rescale = expf(maximum[g] - highest);
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
    const size_t line =
        (static_cast<size_t>(token) * call.heads + kv_head * group + i / size) * parts + part;
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
  for (int part = 0; part < parts; ++part)
    highest = Maximum{}(highest, partial.maximum[line * parts + part]);
  for (int part = 0; part < parts; ++part) {
    sum += partial.sum[line * parts + part] * expf(partial.maximum[line * parts + part] - highest);
  }
  for (int d = threadIdx.x; d < size; d += blockDim.x) {
    float total = 0;
    for (int part = 0; part < parts; ++part) {
      total += partial.output[(line * parts + part) * size + d] *
               expf(partial.maximum[line * parts + part] - highest);
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

// The parts of a paged token have a fixed length, because the order of its sums must not depend on
// the other tokens of the batch.
constexpr int kPagedChunks = 2;
Parts parts_of_pages(int table_width, int page) {
  const int chunks = table_width * (page / kChunk);
  return {(chunks + kPagedChunks - 1) / kPagedChunks, kPagedChunks};
}

template <class T, class Rows>
void append(const AttentionCall& call, const T* qkv, const Rows& rows) {
  const int64_t count = int64_t{call.batch} * call.time * 2 * call.kv_heads * call.head_size;
  append_kernel<<<static_cast<unsigned>(
                      std::min<int64_t>((count + 255) / 256, int64_t{call.processors} * 16)),
                  256, 0, call.stream>>>(qkv, rows, call);
  check_launch();
}

template <class T, class Rows>
void attend(const AttentionCall& call, const T* qkv, const Rows& rows, T* o, float* scratch,
            Parts parts, const T* memory) {
  const int tokens = call.batch * call.time, group = call.group(), size = call.head_size;
  const size_t lines = static_cast<size_t>(tokens) * call.heads * parts.count;
  const Partial partial = {scratch, scratch + lines, scratch + 2 * lines};
  const bool packs = size % kVector<T> == 0 && aligned16({memory});
  const int bytes = 2 * kChunk * row_pitch<T>(size) +
                    (2 * group * size + group * (kChunk + 3)) * static_cast<int>(sizeof(float));
  LF_CUDA_CHECK(cudaFuncSetAttribute(cached_kernel<T, Rows>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cached_kernel<<<dim3(tokens, call.kv_heads, parts.count), kCachedThreads, bytes, call.stream>>>(
      qkv, rows, partial, call, parts.chunks, packs);
  check_launch();
  merge_kernel<<<static_cast<unsigned>(tokens * call.heads), 64, 0, call.stream>>>(partial, o, size,
                                                                                   parts.count);
  check_launch();
}

size_t scratch_of(const AttentionCall& call, Parts parts) {
  return static_cast<size_t>(call.batch) * call.time * call.heads * parts.count *
         (call.head_size + 2) * sizeof(float);
}

}  // namespace

size_t attention_cached_scratch(const AttentionCall& call, int position) {
  return scratch_of(call, parts_of(call, position));
}

template <class T>
void attention_append(const AttentionCall& call, const T* qkv, T* cache, int position,
                      int capacity) {
  append(call, qkv, ContiguousRows<T>{cache, position, capacity});
}

template <class T>
void attention_cached(const AttentionCall& call, const T* qkv, T* cache, T* o, float* scratch,
                      int position, int capacity) {
  attend(call, qkv, ContiguousRows<T>{cache, position, capacity}, o, scratch,
         parts_of(call, position), cache);
}

size_t attention_paged_scratch(const AttentionCall& call, int table_width, int page) {
  return scratch_of(call, parts_of_pages(table_width, page));
}

template <class T>
void attention_paged(const AttentionCall& call, const T* qkv, T* pages, T* o, float* scratch,
                     const PagedPlaces& places) {
  const PagedRows<T> rows = {pages,
                             places.table,
                             places.sequences,
                             places.positions,
                             places.count,
                             places.table_width,
                             places.pages,
                             places.page,
                             places.wrong_sequence,
                             places.wrong_position,
                             places.wrong_page};
  append(call, qkv, rows);
  attend(call, qkv, rows, o, scratch, parts_of_pages(places.table_width, places.page), pages);
}

#define LF_INSTANCES(T)                                                                     \
  template void attention_append(const AttentionCall&, const T*, T*, int, int);             \
  template void attention_cached(const AttentionCall&, const T*, T*, T*, float*, int, int); \
  template void attention_paged(const AttentionCall&, const T*, T*, T*, float*, const PagedPlaces&);
LF_INSTANCES(float)
LF_INSTANCES(bfloat16)

}  // namespace llamaforge::cuda

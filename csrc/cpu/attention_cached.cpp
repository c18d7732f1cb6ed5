// Attention of new tokens over a cache of keys and values, for generation. Reading the cache once
// per token takes most of the time, so each (batch, query head, token) is one task of plain dot
// products over the cached rows.
//
//   qkv (B,T,(H+2KV)·hd), cache (B,2,KV,Tmax,hd)
//   rows position .. position+T-1 of the cache become the new k and v
//   o[t] = softmax(scale · q[t] · kᵀ) · v over cache rows first_key[t] .. position+t
//
// Without first keys, the rows start at 0.
#include <omp.h>

#include "cpu/attention_rows.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

template <class T>
struct CachedAttention {
  Attention shape;
  const T* qkv;
  T *cache, *o;
  int64_t position, capacity;

  // Returns the rows of a kv head in the cache; which: 0 for keys, 1 for values.
  T* rows(int64_t b, int64_t which, int64_t kv) const {
    return cache + ((b * 2 + which) * shape.kv_heads + kv) * capacity * shape.head_size;
  }
};

template <class T>
void append(const CachedAttention<T>& x) {
  const Attention& shape = x.shape;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t t = 0; t < shape.time; ++t) {
      const T* heads =
          x.qkv + (b * shape.time + t) * shape.stride() + shape.heads * shape.head_size;
      for (int64_t which = 0; which < 2; ++which) {
        for (int64_t kv = 0; kv < shape.kv_heads; ++kv, heads += shape.head_size) {
          std::memcpy(x.rows(b, which, kv) + (x.position + t) * shape.head_size, heads,
                      static_cast<size_t>(shape.head_size) * sizeof(T));
        }
      }
    }
  }
}

// Computes one query row. `scores` holds one float for each visible row, rounded up to whole
// vectors.
template <class T>
void attend(const CachedAttention<T>& x, int64_t b, int64_t head, int64_t t, float* scores) {
  const Attention& shape = x.shape;
  const int64_t size = shape.head_size,
                first = shape.first_key ? shape.first_key[b * shape.time + t] : 0;
  const int64_t visible = x.position + t + 1 - first, kv = head / shape.group();
  const T* query = x.qkv + (b * shape.time + t) * shape.stride() + head * size;
  const T* keys = x.rows(b, 0, kv) + first * size;
  const T* values = x.rows(b, 1, kv) + first * size;

  T* out = x.o + (b * shape.time + t) * shape.heads * size + head * size;
  attend_rows(query, out, size, shape.scale, visible, scores,
              [&](const auto& body) { body(0, visible, keys, values); });
}

template <class T>
void run(Stream& stream, const CachedAttention<T>& x) {
  append(x);
  const Attention& shape = x.shape;
  const int64_t longest = round_up(x.position + shape.time, 16);
  const int64_t rows = shape.batch * shape.heads * shape.time;
  const Scratch scratch(stream,
                        static_cast<size_t>(longest * omp_get_max_threads()) * sizeof(float));
  parallel_rows(rows, longest * shape.head_size, [&](int64_t begin, int64_t end) {
    float* scores = scratch.as<float>() + longest * omp_get_thread_num();
    for (int64_t row = begin; row < end; ++row) {
      // Time is the outermost axis, so that the row ranges of all threads cost about the same.
      const int64_t t = row / (shape.batch * shape.heads), b = row / shape.heads % shape.batch;
      attend(x, b, row % shape.heads, t, scores);
    }
  });
}

}  // namespace

void attention_cached(Stream& stream, In qkv, InOut cache, std::optional<In> first_key, Out o,
                      int64_t heads, int64_t kv_heads, int64_t position, double scale) {
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_cached(size, qkv, cache, o, position);
  Attention shape = attention_of(size, scale);
  shape.first_key = checked_first_key(first_key, size.batch, size.time, position);
  with_float("qkv", qkv, [&]<class T>() {
    run<T>(stream, {shape, qkv.data<T>(), cache.data<T>(), o.data<T>(), position, cache.dim(3)});
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

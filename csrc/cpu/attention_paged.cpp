// Attention of tokens of many sequences over a paged cache, for an engine. As in attention_cached,
// each (token, query head) is one task of plain dot products over the cached rows, because reading
// the cache takes most of the time of a decoded token.
//
//   qkv (B,T,(H+2KV)·hd), pages (P,2,KV,page,hd), table (S,W), sequences and positions (B,T)
//   page table[s, i] holds positions i·page .. i·page + page-1 of sequence s
//   o[n] = softmax(scale · q[n] · kᵀ) · v over positions first_key[n] .. positions[n]
//
// Without first keys, the positions start at 0. With angles, q and k of all tokens turn first.
#include <omp.h>

#include "cpu/attention_rows.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

struct Places {
  const int32_t *table, *sequences, *positions, *first_key;
  int64_t count, table_width, pages, page;

  int64_t sequence(int64_t n) const { return sequences ? sequences[n] : n; }
  const int32_t* pages_of(int64_t n) const { return table + sequence(n) * table_width; }
  int64_t first(int64_t n) const { return first_key ? first_key[n] : 0; }
};

// Checks each value that becomes an address. @returns the largest number of positions that a token
// sees
int64_t check_places(const Places& places, int64_t tokens) {
  int64_t longest = 0;
  for (int64_t n = 0; n < tokens; ++n) {
    const int64_t sequence = places.sequence(n), position = places.positions[n];
    if (sequence < 0 || sequence >= places.count) {
      throw Error("ERR_POSITION", format("sequence {} of token {} is outside the table's 0..{}",
                                         sequence, n, places.count - 1));
    }
    if (position < 0 || position >= places.table_width * places.page) {
      throw Error("ERR_POSITION", format("position {} of token {} is outside its sequence's 0..{}",
                                         position, n, places.table_width * places.page - 1));
    }
    const int64_t first = places.first(n);
    if (first < 0 || first > position) {
      throw Error("ERR_POSITION",
                  format("first key {} of token {} is outside 0..{}", first, n, position));
    }
    for (int64_t i = first / places.page; i <= position / places.page; ++i) {
      const int64_t page = places.pages_of(n)[i];
      if (page < 0 || page >= places.pages) {
        throw Error("ERR_POSITION", format("page {} of sequence {} is outside the cache's 0..{}",
                                           page, sequence, places.pages - 1));
      }
    }
    longest = std::max(longest, position + 1 - first);
  }
  return longest;
}

template <class T>
struct PagedAttention {
  Attention shape;
  Places places;
  const T* qkv;
  T *pages, *o;

  // Returns a page's rows of a kv head; which: 0 for keys, 1 for values.
  T* rows(int64_t page, int64_t which, int64_t kv) const {
    return pages + ((page * 2 + which) * shape.kv_heads + kv) * places.page * shape.head_size;
  }
};

template <class T>
void append(const PagedAttention<T>& x, int64_t tokens) {
  const auto& [shape, places, qkv, pages, o] = x;
  for (int64_t n = 0; n < tokens; ++n) {
    const T* heads = qkv + n * shape.stride() + shape.heads * shape.head_size;
    const int64_t position = places.positions[n], page = places.pages_of(n)[position / places.page];
    for (int64_t which = 0; which < 2; ++which) {
      for (int64_t kv = 0; kv < shape.kv_heads; ++kv, heads += shape.head_size) {
        std::memcpy(x.rows(page, which, kv) + position % places.page * shape.head_size, heads,
                    static_cast<size_t>(shape.head_size) * sizeof(T));
      }
    }
  }
}

template <class T>
void attend(const PagedAttention<T>& x, int64_t n, int64_t head, float* scores) {
  const Attention& shape = x.shape;
  const Places& places = x.places;
  const int64_t size = shape.head_size, kv = head / shape.group(), first = places.first(n);
  const int64_t end = places.positions[n] + 1;
  const int32_t* pages = places.pages_of(n);
  const auto each_page = [&](const auto& body) {
    for (int64_t from = first; from < end;) {
      const int64_t i = from / places.page, to = std::min(end, (i + 1) * places.page);
      const int64_t skipped = from % places.page * size;
      body(from - first, to - from, x.rows(pages[i], 0, kv) + skipped,
           x.rows(pages[i], 1, kv) + skipped);
      from = to;
    }
  };
  attend_rows(x.qkv + n * shape.stride() + head * size, x.o + (n * shape.heads + head) * size, size,
              shape.scale, end - first, scores, each_page);
}

}  // namespace

void attention_paged(Stream& stream, In qkv, InOut pages, In table, std::optional<In> sequences,
                     In positions, std::optional<In> first_key, std::optional<In> angles, Out o,
                     int64_t heads, int64_t kv_heads, double scale) {
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_paged(size, qkv, pages, table, sequences, positions, first_key, angles, o);
  if (angles) {
    const Tensor turned = temporary(qkv, qkv.shape, qkv.dtype);
    rope(stream, qkv, *angles, positions, Out{turned}, heads + 2 * kv_heads, heads + kv_heads, 0,
         false);
    return attention_paged(stream, In{turned}, pages, table, sequences, positions, first_key,
                           std::nullopt, o, heads, kv_heads, scale);
  }
  const Places places = {table.data<int32_t>(),
                         sequences ? sequences->data<int32_t>() : nullptr,
                         positions.data<int32_t>(),
                         first_key ? first_key->data<int32_t>() : nullptr,
                         table.dim(0),
                         table.dim(1),
                         pages.dim(0),
                         pages.dim(3)};
  const int64_t tokens = size.batch * size.time,
                longest = round_up(check_places(places, tokens), 16);
  if (tokens == 0) return;
  with_float("qkv", qkv, [&]<class T>() {
    const PagedAttention<T> x = {attention_of(size, scale), places, qkv.data<T>(), pages.data<T>(),
                                 o.data<T>()};
    append(x, tokens);
    const Scratch scratch(stream,
                          static_cast<size_t>(longest * omp_get_max_threads()) * sizeof(float));
    parallel_rows(tokens * heads, longest * size.head_size, [&](int64_t begin, int64_t end) {
      float* scores = scratch.as<float>() + longest * omp_get_thread_num();
      for (int64_t task = begin; task < end; ++task) attend(x, task / heads, task % heads, scores);
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

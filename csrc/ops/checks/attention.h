#pragma once

#include <cmath>
#include <optional>

#include "ops/checks/common.h"

namespace llamaforge {

// (B,T) queries of `heads` heads, which share keys and values in groups.
struct AttentionSize {
  int64_t batch, time, heads, kv_heads, head_size;
};

static inline AttentionSize check_qkv(const Tensor& qkv, int64_t heads, int64_t kv_heads,
                                      double scale) {
  check_float("qkv", qkv);
  LF_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "kv heads {} do not divide heads {}",
           kv_heads, heads);
  LF_CHECK(qkv.rank() == 3 && qkv.dim(2) % (heads + 2 * kv_heads) == 0,
           "expected qkv of shape (B,T,({}+2·{})·head size), got {}", heads, kv_heads,
           to_string(qkv.shape));
  LF_CHECK(std::isfinite(scale) && scale > 0, "expected a positive scale, got {}", scale);
  return {qkv.dim(0), qkv.dim(1), heads, kv_heads, qkv.dim(2) / (heads + 2 * kv_heads)};
}

static inline void check_like_o(const char* name, const Tensor& o, const AttentionSize& size,
                                const Tensor& qkv) {
  LF_CHECK(o.shape == (Shape{size.batch, size.time, size.heads * size.head_size}) &&
               o.dtype == qkv.dtype,
           "{} {} {} does not fit qkv {} {}", name, name_of(o.dtype), to_string(o.shape),
           name_of(qkv.dtype), to_string(qkv.shape));
}

static inline void check_attention_forward(const AttentionSize& size, const Tensor& qkv,
                                           const Tensor& o, const Tensor& statistics) {
  check_like_o("o", o, size, qkv);
  check_dtype("statistics", statistics, DType::f32);
  LF_CHECK(statistics.shape == (Shape{2, size.batch, size.heads, size.time}),
           "expected statistics of shape (2,B,H,T), got {}", to_string(statistics.shape));
}

static inline void check_attention_backward(const AttentionSize& size, const Tensor& d_o,
                                            const Tensor& qkv, const Tensor& o,
                                            const Tensor& statistics, const Tensor& dqkv) {
  check_like_o("d_o", d_o, size, qkv);
  check_attention_forward(size, qkv, o, statistics);
  check_like("dqkv", dqkv, qkv);
}

static inline void check_attention_cached(const AttentionSize& size, const Tensor& qkv,
                                          const Tensor& cache, const Tensor& o, int64_t position) {
  check_dtype("cache", cache, qkv.dtype);
  check_like_o("o", o, size, qkv);
  LF_CHECK(cache.rank() == 5 && cache.dim(0) == size.batch && cache.dim(1) == 2 &&
               cache.dim(2) == size.kv_heads && cache.dim(4) == size.head_size,
           "expected cache of shape ({},2,{},capacity,{}), got {}", size.batch, size.kv_heads,
           size.head_size, to_string(cache.shape));
  LF_CHECK(position >= 0 && position + size.time <= cache.dim(3),
           "positions {} to {} are not in the cache of {}", position, position + size.time - 1,
           cache.dim(3));
}

// Each device checks the values of `table`, `sequences`, `positions` and `first_key`, because only
// a kernel sees them.
static inline void check_attention_paged(const AttentionSize& size, const Tensor& qkv,
                                         const Tensor& pages, const Tensor& table,
                                         const std::optional<In>& sequences,
                                         const Tensor& positions,
                                         const std::optional<In>& first_key,
                                         const std::optional<In>& angles, const Tensor& o) {
  check_dtype("pages", pages, qkv.dtype);
  check_like_o("o", o, size, qkv);
  LF_CHECK(pages.rank() == 5 && pages.dim(0) >= 1 && pages.dim(1) == 2 &&
               pages.dim(2) == size.kv_heads && pages.dim(3) >= 1 && pages.dim(4) == size.head_size,
           "expected pages of shape (pages,2,{},page,{}), got {}", size.kv_heads, size.head_size,
           to_string(pages.shape));
  check_dtype("table", table, DType::i32);
  LF_CHECK(table.rank() == 2 && table.dim(0) >= 1 && table.dim(1) >= 1,
           "expected table of shape (sequences,pages of one), got {}", to_string(table.shape));
  LF_CHECK(table.dim(1) * pages.dim(3) <= 1 << 24,
           "a sequence of {} pages of {} tokens is too long", table.dim(1), pages.dim(3));
  const auto check_of_tokens = [&](const char* name, const Tensor& values) {
    check_dtype(name, values, DType::i32);
    check_shape(name, values, {size.batch, size.time});
  };
  if (sequences) {
    check_of_tokens("sequences", *sequences);
  } else {
    LF_CHECK(table.dim(0) == size.batch * size.time,
             "expected a row of table {} for each of {} tokens", to_string(table.shape),
             size.batch * size.time);
  }
  if (angles) {
    check_dtype("angles", *angles, DType::f32);
    LF_CHECK(angles->rank() == 3 && 2 * angles->dim(1) == size.head_size && angles->dim(2) == 2,
             "expected angles of shape (positions,{},2), got {}", size.head_size / 2,
             to_string(angles->shape));
  }
  check_of_tokens("positions", positions);
  if (first_key) check_of_tokens("first_key", *first_key);
}

}  // namespace llamaforge

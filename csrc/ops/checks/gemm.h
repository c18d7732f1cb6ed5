#pragma once

#include <algorithm>

#include "ops/checks/common.h"

namespace llamaforge {

// The matrix product that computes a gemm. Leading axes are folded into rows where a single product
// gives the same result: rows of a against one b, and sums over all rows (aᵀ·b with c of rank 2, a
// weight gradient).
struct GemmSize {
  int64_t batch, m, n, k;
  bool a_shared, b_shared;  // one matrix for the whole batch
};

static inline GemmSize check_gemm(const Tensor& a, const Tensor& b, const Tensor& c,
                                  bool transpose_a, bool transpose_b) {
  LF_CHECK(a.rank() >= 2 && b.rank() >= 2 && c.rank() >= 2,
           "expected matrices, got shapes {}, {} -> {}", to_string(a.shape), to_string(b.shape),
           to_string(c.shape));
  const bool to_f32 = a.dtype == DType::f32 && c.dtype == DType::f32;
  const bool to_either =
      a.dtype == DType::bf16 && (c.dtype == DType::f32 || c.dtype == DType::bf16);
  if (a.dtype != b.dtype || !(to_f32 || to_either)) {
    throw Error("ERR_DTYPE",
                format("expected f32·f32 -> f32 or bf16·bf16 -> bf16 or f32, got {}·{} -> {}",
                       name_of(a.dtype), name_of(b.dtype), name_of(c.dtype)));
  }
  const auto leading = [](const Tensor& x) {
    int64_t count = 1;
    for (int64_t axis = 0; axis + 2 < x.rank(); ++axis) count *= x.dim(axis);
    return count;
  };
  const auto same_leading = [](const Tensor& x, const Tensor& y) {
    return x.rank() == y.rank() && std::equal(x.shape.begin(), x.shape.end() - 2, y.shape.begin());
  };
  GemmSize size = {leading(c),
                   a.dim(transpose_a ? -1 : -2),
                   b.dim(transpose_b ? -2 : -1),
                   a.dim(transpose_a ? -2 : -1),
                   false,
                   false};
  bool fits = b.dim(transpose_b ? -1 : -2) == size.k && c.dim(-1) == size.n && c.dim(-2) == size.m;
  if (c.rank() == 2 && a.rank() > 2 && transpose_a && !transpose_b) {
    fits = fits && same_leading(a, b);
    size.k *= leading(a);
  } else if (b.rank() == 2 && !transpose_a) {
    fits = fits && same_leading(a, c);
    size.m *= size.batch;
    size.batch = 1;
  } else {
    size.a_shared = a.rank() == 2 && c.rank() > 2;
    size.b_shared = b.rank() == 2 && c.rank() > 2;
    fits = fits && (size.a_shared || same_leading(a, c)) && (size.b_shared || same_leading(b, c));
  }
  LF_CHECK(fits, "shapes do not fit: {}{} · {}{} -> {}", to_string(a.shape),
           transpose_a ? " transposed" : "", to_string(b.shape), transpose_b ? " transposed" : "",
           to_string(c.shape));
  return size;
}

}  // namespace llamaforge

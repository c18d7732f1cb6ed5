#pragma once

#include "ops/checks/common.h"

namespace llamaforge {

struct EmbeddingSize {
  int64_t tokens, vocab, hidden;
};

// table: the weight or its gradient; rows: y or its gradient. The kernel checks the ids themselves.
static inline EmbeddingSize check_embedding(const Tensor& ids, const char* table_name,
                                            const Tensor& table, const char* rows_name,
                                            const Tensor& rows) {
  check_dtype("ids", ids, DType::i32);
  check_float(table_name, table);
  check_float(rows_name, rows);
  LF_CHECK(table.rank() == 2, "expected {} of shape (vocabulary, hidden), got {}", table_name,
           to_string(table.shape));
  Shape expected = ids.shape;
  expected.push_back(table.dim(1));
  check_shape(rows_name, rows, expected);
  return {ids.numel(), table.dim(0), table.dim(1)};
}

static inline EmbeddingSize check_embedding_forward(const Tensor& ids, const Tensor& weight,
                                                    const Tensor& y) {
  const EmbeddingSize size = check_embedding(ids, "weight", weight, "y", y);
  check_dtype("y", y, weight.dtype);
  return size;
}

static inline EmbeddingSize check_embedding_backward(const Tensor& ids, const Tensor& dy,
                                                     const Tensor& weight_grad) {
  const EmbeddingSize size = check_embedding(ids, "weight_grad", weight_grad, "dy", dy);
  check_dtype("weight_grad", weight_grad, DType::f32);
  return size;
}

}  // namespace llamaforge

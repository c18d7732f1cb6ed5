// Embedding: y (N,D) = weight[ids] (N). Backward adds row n of dy to row ids[n] of weight_grad
// (V,D) f32.
// Ids are checked before anything is written, and the error names the position of a bad id.
// Backward is parallel over columns, not rows: a thread adds all N rows in order within its
// columns. So backward needs no atomics and no sorting, the sum of a row has one order, and a
// frequent token is no bottleneck.

#include "ops/checks/embedding.h"
#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

constexpr int64_t kColumns = 64;  // fewest columns per thread: whole cache lines

void check_ids(const Tensor& ids, int64_t vocab) {
  const int32_t* id = ids.data<int32_t>();
  for (int64_t n = 0; n < ids.numel(); ++n) {
    if (id[n] < 0 || id[n] >= vocab) {
      throw Error("ERR_TOKEN_ID",
                  format("token id {} at position {} is outside the vocabulary 0..{}", id[n], n,
                         vocab - 1));
    }
  }
}

}  // namespace

void embedding_forward(Stream&, In ids, In weight, Out y) {
  const EmbeddingSize sizes = check_embedding_forward(ids, weight, y);
  check_ids(ids, sizes.vocab);
  const size_t row_bytes = static_cast<size_t>(sizes.hidden) * size_of(weight.dtype);
  const int32_t* id = ids.data<int32_t>();
  const char* table = static_cast<const char*>(weight.raw());
  char* out = static_cast<char*>(y.raw());
  parallel_rows(sizes.tokens, sizes.hidden, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::memcpy(out + static_cast<size_t>(n) * row_bytes,
                  table + static_cast<size_t>(id[n]) * row_bytes, row_bytes);
    }
  });
}

void embedding_backward(Stream& stream, In ids, In dy, InOut weight_grad) {
  const EmbeddingSize sizes = check_embedding_backward(ids, dy, weight_grad);
  check_ids(ids, sizes.vocab);
  const int32_t* id = ids.data<int32_t>();
  float* table = weight_grad.data<float>();
  const int64_t share = (sizes.hidden + stream.threads() - 1) / stream.threads();
  const int64_t columns = (std::max<int64_t>(1, share) + kColumns - 1) / kColumns * kColumns;
  with_float("dy", dy, [&]<class T>() {
    const T* gradient = dy.data<T>();
    parallel_chunks(sizes.hidden, columns, sizes.tokens, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < sizes.tokens; ++n) {
        const T* from = gradient + n * sizes.hidden;
        float* to = table + id[n] * sizes.hidden;
        for_each_vector(begin, end, [&](int64_t i, auto lanes) {
          lanes.store(to + i, lanes.load(to + i) + lanes.load(from + i));
        });
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

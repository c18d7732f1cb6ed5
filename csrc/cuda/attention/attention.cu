// Causal attention on packed qkv (B,T,(H+2KV)·hd) with grouped query heads and any T:
//   o = softmax(scale · q kᵀ) v,  and its gradient.
// This file checks the arguments and chooses the kernel: wgmma and TMA on Hopper (head sizes 64,
// 96, 128), mma.sync for bf16 elsewhere (multiples of 8 up to 128), f32 arithmetic for the rest.
// All kernels are deterministic; dk and dv are summed over a group in f32.
#include "cuda/attention/attention_kernels.h"

#include <limits>

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/attention.h"
#include "ops/checks/first_key.h"

namespace llamaforge::cuda {
namespace {

// Without the stream, which attention in a chain (gemm/chain.h) does not take.
AttentionCall sizes_for(const CudaStream& cuda, const AttentionSize& size, double scale) {
  LF_CHECK(size.batch * size.heads <= std::numeric_limits<int>::max() && size.time <= 1 << 20,
           "attention of {} heads over ({},{}) tokens does not fit a grid", size.heads, size.batch,
           size.time);
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  return {narrow(size.batch),     narrow(size.time),
          narrow(size.heads),     narrow(size.kv_heads),
          narrow(size.head_size), static_cast<float>(scale),
          cuda.multiprocessors(), nullptr};
}

AttentionCall call_for(const CudaStream& cuda, const AttentionSize& size, double scale) {
  AttentionCall call = sizes_for(cuda, size, scale);
  call.stream = cuda.compute();
  return call;
}

bool on_hopper(const CudaStream& cuda, const AttentionCall& call) {
  return cuda.compute_capability() == 90 && hopper_takes(call);
}

template <class T>
void forward(CudaStream& cuda, const AttentionCall& call, const T* qkv, T* o, float* statistics) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (aligned16({qkv, o})) {
      if (on_hopper(cuda, call)) {
        const Scratch next(cuda, sizeof(int));
        return attention_forward_hopper(call, qkv, o, statistics, next.as<int>());
      }
      if (mma_takes(call)) return attention_forward_mma(call, qkv, o, statistics);
    }
  }
  attention_forward_plain(call, qkv, o, statistics);
}

template <class T>
void backward(CudaStream& cuda, const AttentionCall& call, const T* d_o, const T* qkv,
              AttentionStatistics statistics, T* dqkv) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (aligned16({d_o, qkv, dqkv})) {
      if (on_hopper(cuda, call)) return attention_backward_hopper(call, d_o, qkv, statistics, dqkv);
      if (mma_takes(call)) return attention_backward_mma(call, d_o, qkv, statistics, dqkv);
    }
  }
  attention_backward_plain(call, d_o, qkv, statistics, dqkv);
}

}  // namespace

void attention_forward(Stream& stream, In qkv, std::optional<In> first_key, Out o, Out statistics,
                       int64_t heads, int64_t kv_heads, double scale) {
  CudaStream& cuda = on_cuda(stream);
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_forward(size, qkv, o, statistics);
  AttentionCall call = call_for(cuda, size, scale);
  call.first_key = check_first_key(first_key, size.batch, size.time);
  if (qkv.numel() == 0) return;
  with_float("qkv", qkv, [&]<class T>() {
    forward(cuda, call, qkv.data<T>(), o.data<T>(), statistics.data<float>());
  });
}

void attention_backward(Stream& stream, In d_o, In qkv, In o, In statistics,
                        std::optional<In> first_key, Out dqkv, int64_t heads, int64_t kv_heads,
                        double scale) {
  CudaStream& cuda = on_cuda(stream);
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_backward(size, d_o, qkv, o, statistics, dqkv);
  AttentionCall call = call_for(cuda, size, scale);
  call.first_key = check_first_key(first_key, size.batch, size.time);
  if (qkv.numel() == 0) return;
  const Scratch scratch(stream, AttentionStatistics::bytes(call));
  const AttentionStatistics of_rows(call, statistics.data<float>(), scratch.as<float>());
  with_float("qkv", qkv, [&]<class T>() {
    attention_statistics(call, d_o.data<T>(), o.data<T>(), of_rows);
    backward(cuda, call, d_o.data<T>(), qkv.data<T>(), of_rows, dqkv.data<T>());
  });
}

void attention_cached(Stream& stream, In qkv, InOut cache, std::optional<In> first_key, Out o,
                      int64_t heads, int64_t kv_heads, int64_t position, double scale) {
  CudaStream& cuda = on_cuda(stream);
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_cached(size, qkv, cache, o, position);
  AttentionCall call = call_for(cuda, size, scale);
  call.first_key = check_first_key(first_key, size.batch, size.time);
  LF_CHECK(cache.dim(3) <= 1 << 20, "a cache of {} rows is too long", cache.dim(3));
  if (qkv.numel() == 0) return;
  const int start = static_cast<int>(position), capacity = static_cast<int>(cache.dim(3));
  with_float("qkv", qkv, [&]<class T>() {
    attention_append(call, qkv.data<T>(), cache.data<T>(), start, capacity);
    if (start == 0 && call.time > 1) {  // a prompt sees only itself
      const Scratch statistics(
          stream, 2 * static_cast<size_t>(call.batch) * heads * call.time * sizeof(float));
      return forward(cuda, call, qkv.data<T>(), o.data<T>(), statistics.as<float>());
    }
    const Scratch scratch(stream, attention_cached_scratch(call, start));
    attention_cached(call, qkv.data<T>(), cache.data<T>(), o.data<T>(), scratch.as<float>(), start,
                     capacity);
  });
}

void attention_paged(Stream& stream, In qkv, InOut pages, In table, std::optional<In> sequences,
                     In positions, std::optional<In> first_key, std::optional<In> angles, Out o,
                     int64_t heads, int64_t kv_heads, double scale) {
  CudaStream& cuda = on_cuda(stream);
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_paged(size, qkv, pages, table, sequences, positions, first_key, angles, o);
  LF_CHECK(pages.dim(3) % kPageMultiple == 0, "expected pages of a multiple of {} tokens, got {}",
           kPageMultiple, pages.dim(3));
  LF_CHECK(table.dim(0) <= INT32_MAX && pages.dim(0) <= INT32_MAX,
           "table {} and pages {} are too large", to_string(table.shape), to_string(pages.shape));
  LF_CHECK(!angles || angles->dim(0) <= INT32_MAX, "angles {} are too many",
           to_string(angles->shape));
  AttentionCall call = sizes_for(cuda, size, scale);
  if (first_key) call.first_key = first_key->data<int32_t>();
  if (qkv.numel() == 0) return;
  const PagedPlaces places = {
      table.data<int32_t>(),
      sequences ? sequences->data<int32_t>() : nullptr,
      positions.data<int32_t>(),
      static_cast<int>(table.dim(0)),
      static_cast<int>(table.dim(1)),
      static_cast<int>(pages.dim(0)),
      static_cast<int>(pages.dim(3)),
      angles ? angles->data<float>() : nullptr,
      angles ? static_cast<int>(angles->dim(0)) : 0,
      cuda.fault_site("ERR_POSITION", "sequence {} of token {} is outside the table's 0..{}"),
      cuda.fault_site("ERR_POSITION", "position {} of token {} is outside its sequence's 0..{}"),
      cuda.fault_site("ERR_POSITION", "page {} of sequence {} is outside the cache's 0..{}"),
      cuda.fault_site("ERR_POSITION", "position {} of token {} is outside the angles' 0..{}")};
  if (qkv.dtype == DType::bf16 &&
      paged_mma_takes(call, places, qkv.data<bfloat16>(), pages.data<bfloat16>())) {
    const Scratch scratch(stream, paged_mma_scratch(call, places));
    return attention_paged_mma(cuda, call, qkv.data<bfloat16>(), pages.data<bfloat16>(),
                               o.data<bfloat16>(), scratch.as<float>(), places);
  }
  call.stream = cuda.compute();
  if (angles) {
    const Tensor turned = temporary(qkv, qkv.shape, qkv.dtype);
    rope(stream, qkv, *angles, positions, Out{turned}, heads + 2 * kv_heads, heads + kv_heads, 0,
         false);
    return attention_paged(stream, In{turned}, pages, table, sequences, positions, first_key,
                           std::nullopt, o, heads, kv_heads, scale);
  }
  const Scratch scratch(stream, attention_paged_scratch(call, places.table_width, places.page));
  with_float("qkv", qkv, [&]<class T>() {
    attention_paged(call, qkv.data<T>(), pages.data<T>(), o.data<T>(), scratch.as<float>(), places);
  });
}

}  // namespace llamaforge::cuda

// Causal attention on packed qkv (B,T,(H+2KV)·hd), grouped query heads, any T:  o = softmax(scale · q kᵀ) v, and its
// gradient. Checks, and the choice of kernel: wgmma and TMA on Hopper (head sizes 64, 96, 128), mma.sync for bf16
// elsewhere (multiples of 8 up to 128), f32 arithmetic for the rest. All are deterministic; dk and dv are summed over a
// group in f32.
#include "cuda/attention/attention_kernels.h"

#include <cmath>
#include <limits>

#include "cuda/cuda_ops.h"
#include "cuda/launch.h"

namespace llamaforge::cuda {
namespace {

AttentionCall checked(CudaStream& cuda, const Tensor& qkv, int64_t heads, int64_t kv_heads, double scale) {
  check_float("qkv", qkv);
  LF_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "kv heads {} do not divide heads {}", kv_heads, heads);
  LF_CHECK(qkv.rank() == 3 && qkv.dim(2) % (heads + 2 * kv_heads) == 0,
           "expected qkv of shape (B,T,({}+2·{})·head size), got {}", heads, kv_heads, to_string(qkv.shape));
  LF_CHECK(std::isfinite(scale) && scale > 0, "expected a positive scale, got {}", scale);
  LF_CHECK(qkv.dim(0) * heads <= std::numeric_limits<int>::max() && qkv.dim(1) <= 1 << 20,
           "attention over {} does not fit a grid", to_string(qkv.shape));
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  return {narrow(qkv.dim(0)),
          narrow(qkv.dim(1)),
          narrow(heads),
          narrow(kv_heads),
          narrow(qkv.dim(2) / (heads + 2 * kv_heads)),
          static_cast<float>(scale),
          cuda.multiprocessors(),
          cuda.compute()};
}

void take_starts(AttentionCall& call, const std::optional<In>& starts) {
  if (!starts) return;
  check_dtype("starts", *starts, DType::i32);
  check_shape("starts", *starts, {call.batch, call.time});
  call.starts = starts->data<int32_t>();
}

void check_like_output(const char* name, const Tensor& tensor, const AttentionCall& call, const Tensor& qkv) {
  LF_CHECK(tensor.shape == (Shape{call.batch, call.time, call.heads * call.head_size}) && tensor.dtype == qkv.dtype,
           "{} {} {} does not fit qkv {} {}", name, name_of(tensor.dtype), to_string(tensor.shape), name_of(qkv.dtype),
           to_string(qkv.shape));
}
void check_lse(const Tensor& lse, const AttentionCall& call) {
  check_dtype("lse", lse, DType::f32);
  LF_CHECK(lse.shape == (Shape{call.batch, call.heads, call.time}), "expected lse of shape (B,H,T), got {}",
           to_string(lse.shape));
}

bool on_hopper(const CudaStream& cuda, const AttentionCall& call) {
  return cuda.compute_capability() == 90 && hopper_takes(call);
}

template <class T>
void forward(CudaStream& cuda, const AttentionCall& call, const T* qkv, T* o, float* lse) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (aligned16({qkv, o})) {
      if (on_hopper(cuda, call)) {
        const Scratch next(cuda, sizeof(int));
        return attention_forward_hopper(call, qkv, o, lse, next.as<int>());
      }
      if (mma_takes(call)) return attention_forward_mma(call, qkv, o, lse);
    }
  }
  attention_forward_plain(call, qkv, o, lse);
}

template <class T>
void backward(CudaStream& cuda, const AttentionCall& call, const T* d_o, const T* qkv, AttentionStatistics statistics,
              T* dqkv) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (aligned16({d_o, qkv, dqkv})) {
      if (on_hopper(cuda, call)) return attention_backward_hopper(call, d_o, qkv, statistics, dqkv);
      if (mma_takes(call)) return attention_backward_mma(call, d_o, qkv, statistics, dqkv);
    }
  }
  attention_backward_plain(call, d_o, qkv, statistics, dqkv);
}

}  // namespace

void attention_forward(Stream& stream, In qkv, std::optional<In> starts, Out o, Out lse, int64_t heads,
                       int64_t kv_heads, double scale) {
  CudaStream& cuda = on_cuda(stream);
  AttentionCall call = checked(cuda, qkv, heads, kv_heads, scale);
  take_starts(call, starts);
  check_like_output("o", o, call, qkv);
  check_lse(lse, call);
  if (qkv.numel() == 0) return;
  with_float("qkv", qkv, [&]<class T>() { forward(cuda, call, qkv.data<T>(), o.data<T>(), lse.data<float>()); });
}

void attention_backward(Stream& stream, In d_o, In qkv, In o, In lse, std::optional<In> starts, Out dqkv, int64_t heads,
                        int64_t kv_heads, double scale) {
  CudaStream& cuda = on_cuda(stream);
  AttentionCall call = checked(cuda, qkv, heads, kv_heads, scale);
  take_starts(call, starts);
  check_like_output("d_o", d_o, call, qkv);
  check_like_output("o", o, call, qkv);
  check_lse(lse, call);
  check_dtype("dqkv", dqkv, qkv.dtype);
  check_shape("dqkv", dqkv, qkv.shape);
  if (qkv.numel() == 0) return;
  const Scratch scratch(stream, AttentionStatistics::bytes(call));
  const AttentionStatistics statistics(call, scratch.as<float>());
  with_float("qkv", qkv, [&]<class T>() {
    attention_statistics(call, d_o.data<T>(), o.data<T>(), lse.data<float>(), statistics);
    backward(cuda, call, d_o.data<T>(), qkv.data<T>(), statistics, dqkv.data<T>());
  });
}

void attention_cached(Stream& stream, In qkv, InOut cache, Out o, int64_t heads, int64_t kv_heads, int64_t position,
                      double scale) {
  CudaStream& cuda = on_cuda(stream);
  const AttentionCall call = checked(cuda, qkv, heads, kv_heads, scale);
  check_dtype("cache", cache, qkv.dtype);
  check_like_output("o", o, call, qkv);
  LF_CHECK(cache.rank() == 5 && cache.dim(0) == call.batch && cache.dim(1) == 2 && cache.dim(2) == kv_heads &&
               cache.dim(4) == call.head_size,
           "expected cache of shape ({},2,{},capacity,{}), got {}", call.batch, kv_heads, call.head_size,
           to_string(cache.shape));
  LF_CHECK(position >= 0 && position + call.time <= cache.dim(3), "positions {} to {} are not in the cache of {}",
           position, position + call.time - 1, cache.dim(3));
  LF_CHECK(cache.dim(3) <= 1 << 20, "a cache of {} rows is too long", cache.dim(3));
  if (qkv.numel() == 0) return;
  const int start = static_cast<int>(position), capacity = static_cast<int>(cache.dim(3));
  with_float("qkv", qkv, [&]<class T>() {
    attention_append(call, qkv.data<T>(), cache.data<T>(), start, capacity);
    if (start == 0 && call.time > 1) {  // a prompt sees only itself
      const Scratch lse(stream, static_cast<size_t>(call.batch) * heads * call.time * sizeof(float));
      return forward(cuda, call, qkv.data<T>(), o.data<T>(), lse.as<float>());
    }
    const Scratch scratch(stream, attention_cached_scratch(call, start));
    attention_cached(call, qkv.data<T>(), cache.data<T>(), o.data<T>(), scratch.as<float>(), start, capacity);
  });
}

}  // namespace llamaforge::cuda

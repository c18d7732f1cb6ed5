// The head and its loss in one: mean cross-entropy of x (N,D) · weight (V,D)ᵀ, with the gradients of both in the same
// pass. Logits exist for a chunk of rows at a time and turn into their own gradient in place before the next chunk:
//   logits = x wᵀ;  loss += lse - logits[target];  d = (softmax - onehot) / count;  dx = d w;  dweight += dᵀ x
// Three products and no second forward. In bf16 logits and their gradient are bf16, as mixed precision rounds them
// elsewhere; the softmax and all sums are f32 or double. Between the products a row is read once and written once: a
// block holds it in its registers up to 32,768 classes in bf16.

#include <optional>

#include "cuda/cross_entropy.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/gemm.h"

namespace llamaforge::cuda {

namespace {

// Large enough that a product fills the GPU and passes over dweight are few.
constexpr int64_t kChunkBytes = int64_t{512} << 20;

int64_t rows_per_chunk(int64_t rows, int64_t classes, int64_t element) {
  const int64_t most = std::max<int64_t>(128, kChunkBytes / (classes * element));
  const int64_t chunks = (rows + most - 1) / most;
  const int64_t each = (rows + chunks - 1) / chunks;
  return std::min(rows, (each + 127) / 128 * 128);
}

// The losses of rows, whose logits become their gradient if kGradient. Two blocks run side by side on a multiprocessor,
// so that one reads while the other computes.
template <class T, int kCount, int kPacks, bool kGradient>
__global__ void __launch_bounds__(kRowThreads, 2)
    loss_and_gradient_kernel(T* __restrict__ logits, const int32_t* __restrict__ targets, float* __restrict__ losses,
                             const TargetCount* __restrict__ count, int64_t classes, int64_t ignore_index) {
  const int64_t n = blockIdx.x, target = targets[n];
  T* const to = logits + n * classes;
  if (target == ignore_index || target < 0 || target >= classes) {
    if (threadIdx.x == 0) losses[n] = 0;
    if (kGradient) {
      for (int64_t at = int64_t{threadIdx.x} * kCount; at < classes; at += int64_t{kRowThreads} * kCount) {
        store_pack(to + at, Pack<T, kCount>{});
      }
    }
    return;
  }
  const float target_logit = widen(to[target]);
  LogitsRow<T, kCount, kPacks, kRowThreads> row(to, classes);
  const auto [highest, sum] = row_statistics<T>(row);
  if (threadIdx.x == 0) losses[n] = (highest - target_logit) + static_cast<float>(log(sum));
  if constexpr (kGradient) {
    const float inverse_count = count->inverse, scale = static_cast<float>(inverse_count / sum);
    row.each([&](int64_t at, auto& pack) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float d = exponential<T>(widen(pack.value[k]) - highest) * scale;
        pack.value[k] = narrow<T>(at + k == target ? d - inverse_count : d);
      }
      store_pack(to + at, pack);
    });
  }
}

struct Head {
  int64_t rows, width, classes, ignore_index;
  const Tensor *x, *weight, *targets;
  const Tensor *dx, *dweight;  // null: not wanted
  float* losses;               // (rows)
  const TargetCount* count;
};

template <class T>
void run(CudaStream& cuda, const Head& head) {
  const DType dtype = dtype_of<T>();
  const bool gradient = head.dx || head.dweight;
  const int64_t chunk = rows_per_chunk(head.rows, head.classes, sizeof(T));
  const Scratch memory(cuda, static_cast<size_t>(chunk * head.classes) * sizeof(T));
  T* logits = memory.as<T>();
  for (int64_t first = 0; first < head.rows; first += chunk) {
    const int64_t rows = std::min(chunk, head.rows - first);
    const T* x = head.x->data<T>() + first * head.width;
    multiply_matrices(cuda, {1, rows, head.classes, head.width, dtype, dtype}, {x, false}, {head.weight->raw(), true},
                      logits, false);
    with_logits_access<T>(head.classes, {logits}, [&]<int kCount, int kPacks>() {
      const auto kernel = gradient ? loss_and_gradient_kernel<T, kCount, kPacks, true>
                                   : loss_and_gradient_kernel<T, kCount, kPacks, false>;
      kernel<<<static_cast<unsigned>(rows), kRowThreads, 0, cuda.compute()>>>(
          logits, head.targets->data<int32_t>() + first, head.losses + first, head.count, head.classes,
          head.ignore_index);
    });
    check_launch();
    if (head.dx) {
      char* dx = static_cast<char*>(head.dx->raw()) + static_cast<size_t>(first * head.width) * size_of(head.dx->dtype);
      multiply_matrices(cuda, {1, rows, head.width, head.classes, dtype, head.dx->dtype}, {logits, false},
                        {head.weight->raw(), false}, dx, false);
    }
    if (head.dweight) {
      multiply_matrices(cuda, {1, head.classes, head.width, rows, dtype, DType::f32}, {logits, true}, {x, false},
                        head.dweight->raw(), first > 0);
    }
  }
}

}  // namespace

void linear_cross_entropy(Stream& stream, In x, In weight, In targets, Out loss, std::optional<Out> dx,
                          std::optional<Out> dweight, int64_t ignore_index) {
  CudaStream& cuda = on_cuda(stream);
  check_float("x", x);
  check_dtype("weight", weight, x.dtype);
  check_dtype("targets", targets, DType::i32);
  check_dtype("loss", loss, DType::f32);
  LF_CHECK(x.rank() == 2 && weight.rank() == 2 && weight.dim(1) == x.dim(1),
           "expected x (N,D) and weight (V,D), got {} and {}", to_string(x.shape), to_string(weight.shape));
  check_shape("targets", targets, {x.dim(0)});
  LF_CHECK(loss.numel() == 1, "expected one element for loss, got {}", to_string(loss.shape));
  if (dx) {
    check_shape("dx", *dx, x.shape);
    if (dx->dtype != DType::f32) check_dtype("dx", *dx, x.dtype);
  }
  if (dweight) {
    check_shape("dweight", *dweight, weight.shape);
    check_dtype("dweight", *dweight, DType::f32);
  }
  const int64_t rows = x.dim(0);
  const Scratch count(stream, sizeof(TargetCount)), losses(stream, static_cast<size_t>(rows) * sizeof(float));
  count_targets(cuda, targets, weight.dim(0), ignore_index, count.as<TargetCount>());
  if (rows > 0 && weight.dim(0) > 0) {
    with_float("x", x, [&]<class T>() {
      run<T>(cuda, {rows, x.dim(1), weight.dim(0), ignore_index, &x, &weight, &targets, dx ? &*dx : nullptr,
                    dweight ? &*dweight : nullptr, losses.as<float>(), count.as<TargetCount>()});
    });
  } else if (dweight && dweight->bytes() > 0) {
    LF_CUDA_CHECK(cudaMemsetAsync(dweight->raw(), 0, dweight->bytes(), cuda.compute()));
  }
  mean_loss(cuda, losses.as<float>(), rows, count.as<TargetCount>(), loss.data<float>());
}

}  // namespace llamaforge::cuda

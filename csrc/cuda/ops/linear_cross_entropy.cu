// The output head and its loss in one op: mean cross-entropy of x (N,D) · weight (V,D)ᵀ, with the
// gradients of both in the same pass. Logits exist for one chunk of rows at a time and turn into
// their own gradient before the next chunk:
//   logits = x wᵀ;  loss += lse - logits[target];  d = (softmax - onehot) / count;
//   dx = d w;  dweight += dᵀ x
// With a gradient of each row's loss given, that number takes the place of 1 / count.
// This takes three products and no second forward. Logits, softmax and sums are f32 (sums double):
// logits rounded to bf16 gave losses off by up to 8e-4. The gradient of the logits has x's dtype:
// f32 replaces the logits in place, bf16 lies next to them. Between the products a logit is read
// once (4 bytes) and its gradient written once (2 or 4). A block holds its row in registers and
// shared memory, up to 69,632 classes on an H100; a longer row is read again for each pass.

#include <cuda_pipeline.h>

#include <optional>
#include <type_traits>

#include "cuda/gemm/gemm.h"
#include "cuda/ops/cross_entropy.cuh"
#include "cuda/ops/cuda_ops.h"
#include "ops/checks/cross_entropy.h"

namespace llamaforge::cuda {

namespace {

// Size of a chunk's logits and their gradient: large enough that a product fills the GPU and passes
// over dweight are few.
constexpr int64_t kChunkBytes = int64_t{2} << 30;

int64_t rows_per_chunk(int64_t rows, int64_t bytes_per_row) {
  const int64_t most = std::max<int64_t>(128, kChunkBytes / bytes_per_row / 128 * 128);
  const int64_t chunks = (rows + most - 1) / most;
  const int64_t each = (rows + chunks - 1) / chunks;
  return std::min(rows, (each + 127) / 128 * 128);
}

// A thread's share of a row: packs of 4 logits, kRowThreads * 4 apart. The first kInRegisters packs
// stay in registers, the others in shared memory, each in a place that no other thread touches.
// With 512 threads and 64 registers, two blocks of 32,768 classes fit a multiprocessor: one reads
// while the other computes.
constexpr int kInRegisters = 8;
constexpr int64_t kClassesPerPack = int64_t{kRowThreads} * 4;

struct HeldRow {
  Pack<float, 4> registers[kInRegisters];
  Pack<float, 4>* shared;  // (packs in shared memory, kRowThreads), from this thread's first one
  int64_t classes;

  __device__ __forceinline__ HeldRow(const float* from, int64_t classes) : classes(classes) {
    extern __shared__ __align__(16) unsigned char memory[];
    shared = reinterpret_cast<Pack<float, 4>*>(memory) + threadIdx.x;
    Pack<float, 4>* to = shared;
    for (int64_t at = kInRegisters * kClassesPerPack + threadIdx.x * 4; at < classes;
         at += kClassesPerPack) {
      __pipeline_memcpy_async(to, from + at, sizeof *to);
      to += kRowThreads;
    }
    __pipeline_commit();
#pragma unroll
    for (int i = 0; i < kInRegisters; ++i) {
      const int64_t at = i * kClassesPerPack + threadIdx.x * 4;
      if (at < classes) registers[i] = load_pack<float, 4>(from + at);
    }
    __pipeline_wait_prior(0);
  }
  // Calls body(place, pack) for this thread's packs; the body may change the pack.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
#pragma unroll
    for (int i = 0; i < kInRegisters; ++i) {
      const int64_t at = i * kClassesPerPack + threadIdx.x * 4;
      if (at < classes) body(at, registers[i]);
    }
    Pack<float, 4>* in = shared;
    for (int64_t at = kInRegisters * kClassesPerPack + threadIdx.x * 4; at < classes;
         at += kClassesPerPack) {
      body(at, *in);
      in += kRowThreads;
    }
  }
};

// A row that is read again for each pass, one logit at a time. Changes by the body are lost.
struct PassingRow {
  const float* from;
  int64_t classes;
  __device__ __forceinline__ PassingRow(const float* from, int64_t classes)
      : from(from), classes(classes) {}
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
    for (int64_t at = threadIdx.x; at < classes; at += kRowThreads) {
      auto pack = load_pack<float, 1>(from + at);
      body(at, pack);
    }
  }
};

// Additional result of a kernel besides the losses.
enum class Extra { kNone, kGradient, kGreedy };

// Computes the losses of rows. With kGradient, it also computes the gradient of their logits, in
// dtype T; gradient may be the logits' memory. With kGreedy, it also tells for each row whether the
// target is the argmax: the first of the largest, where a NaN counts as the largest.
template <class T, class Row, Extra kExtra>
__global__ void __launch_bounds__(kRowThreads, 2)
    loss_and_gradient_kernel(const float* logits, T* gradient, const int32_t* __restrict__ targets,
                             const float* __restrict__ d_losses, float* __restrict__ losses,
                             int32_t* __restrict__ greedy, const TargetCount* __restrict__ count,
                             int64_t classes, int64_t ignore_index) {
  constexpr bool kGradient = kExtra == Extra::kGradient;
  const int64_t n = blockIdx.x, target = targets[n];
  const float* const from = logits + n * classes;
  T* const to = gradient + n * classes;
  if (target == ignore_index || target < 0 || target >= classes) {
    if (threadIdx.x == 0) {
      losses[n] = 0;
      if constexpr (kExtra == Extra::kGreedy) greedy[n] = 0;
    }
    if (kGradient) {
      for (int64_t at = threadIdx.x; at < classes; at += kRowThreads) to[at] = T{};
    }
    return;
  }
  const float target_logit = from[target];
  Row row(from, classes);
  float highest = Maximum::identity();
  row.each([&](int64_t, auto& pack) {
#pragma unroll
    for (const float x : pack.value) highest = Maximum{}(highest, x);
  });
  highest = block_max(highest);
  if constexpr (kExtra == Extra::kGreedy) {
    const auto is_largest = [highest](float x) {
      return x == highest || (x != x && highest != highest);
    };
    const bool candidate = is_largest(target_logit);  // equal in all threads
    int earlier = 0;  // whether a logit before the target is as large
    if (candidate) {
      row.each([&](int64_t at, auto& pack) {
        constexpr int kCount = sizeof pack.value / sizeof(float);
#pragma unroll
        for (int k = 0; k < kCount; ++k) earlier |= at + k < target && is_largest(pack.value[k]);
      });
    }
    earlier = __syncthreads_or(earlier);
    if (threadIdx.x == 0) greedy[n] = candidate && !earlier;
  }
  double sum = 0;
  row.each([&](int64_t, auto& pack) {
    float part = 0;
#pragma unroll
    for (float& x : pack.value) {
      x = exponential<T>(x - highest);
      part += x;
    }
    sum += part;
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) losses[n] = (highest - target_logit) + static_cast<float>(log(sum));
  if constexpr (kGradient) {
    const float d_loss = d_losses ? d_losses[n] : count->inverse,
                scale = static_cast<float>(d_loss / sum);
    row.each([&](int64_t at, auto& pack) {
      constexpr int kCount = sizeof pack.value / sizeof(float);
      Pack<T, kCount> d;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float e = std::is_same_v<Row, PassingRow> ? exponential<T>(pack.value[k] - highest)
                                                        : pack.value[k];
        d.value[k] = narrow<T>(at + k == target ? e * scale - d_loss : e * scale);
      }
      store_pack(to + at, d);
    });
  }
}

// Returns the bytes of shared memory for a row of `classes`; nothing if the row does not fit or
// does not consist of packs.
std::optional<size_t> shared_bytes_for(int64_t classes, int index) {
  if (classes % 4 != 0) return std::nullopt;
  const int64_t packs = (classes + kClassesPerPack - 1) / kClassesPerPack;
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(0, packs - kInRegisters)) *
                       kRowThreads * sizeof(float4);
  int most = 0;
  LF_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  constexpr size_t kOfReductions = 1024;
  return bytes + kOfReductions <= static_cast<size_t>(most) ? std::optional(bytes) : std::nullopt;
}

struct Head {
  int64_t rows, width, classes, ignore_index;
  bool independent_rows;
  const Tensor *x, *weight, *targets;
  const float* d_losses;       // (rows); null: 1 / count each
  const Tensor *dx, *dweight;  // null: not wanted
  float* losses;               // (rows)
  int32_t* greedy;             // (rows); null: not wanted
  const TargetCount* count;
};

template <class T, class Row>
auto kernel_for(bool gradient, bool greedy) {
  if (gradient) return loss_and_gradient_kernel<T, Row, Extra::kGradient>;
  return greedy ? loss_and_gradient_kernel<T, Row, Extra::kGreedy>
                : loss_and_gradient_kernel<T, Row, Extra::kNone>;
}

template <class T>
void run(CudaStream& cuda, const Head& head) {
  const DType dtype = dtype_of<T>();
  const bool wants_gradient = head.dx || head.dweight;
  constexpr bool kInPlace = sizeof(T) == sizeof(float);
  const int64_t bytes_per_row =
      head.classes *
      static_cast<int64_t>(sizeof(float) + (wants_gradient && !kInPlace ? sizeof(T) : 0));
  const int64_t chunk = rows_per_chunk(head.rows, bytes_per_row);
  const Scratch memory(cuda, static_cast<size_t>(chunk * bytes_per_row));
  float* const logits = memory.as<float>();
  T* const gradient = reinterpret_cast<T*>(kInPlace ? logits : logits + chunk * head.classes);

  const std::optional<size_t> held = shared_bytes_for(head.classes, cuda.index());
  const bool wants_greedy = head.greedy != nullptr;
  auto kernel = kernel_for<T, PassingRow>(wants_gradient, wants_greedy);
  if (held) {
    kernel = kernel_for<T, HeldRow>(wants_gradient, wants_greedy);
    LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(*held)));
  }
  for (int64_t first = 0; first < head.rows; first += chunk) {
    const int64_t rows = std::min(chunk, head.rows - first);
    const T* x = head.x->data<T>() + first * head.width;
    multiply_matrices(cuda,
                      {1, rows, head.classes, head.width, dtype, DType::f32, head.independent_rows},
                      {x, false}, {head.weight->raw(), true}, logits, false);
    kernel<<<static_cast<unsigned>(rows), kRowThreads, held.value_or(0), cuda.compute()>>>(
        logits, gradient, head.targets->data<int32_t>() + first,
        head.d_losses ? head.d_losses + first : nullptr, head.losses + first,
        wants_greedy ? head.greedy + first : nullptr, head.count, head.classes, head.ignore_index);
    check_launch();
    if (head.dx) {
      char* dx = static_cast<char*>(head.dx->raw()) +
                 static_cast<size_t>(first * head.width) * size_of(head.dx->dtype);
      multiply_matrices(cuda, {1, rows, head.width, head.classes, dtype, head.dx->dtype},
                        {gradient, false}, {head.weight->raw(), false}, dx, false);
    }
    if (head.dweight) {
      multiply_matrices(cuda, {1, head.classes, head.width, rows, dtype, DType::f32},
                        {gradient, true}, {x, false}, head.dweight->raw(), first > 0);
    }
  }
}

}  // namespace

void linear_cross_entropy(Stream& stream, In x, In weight, In targets, std::optional<In> d_losses,
                          std::optional<Out> loss, std::optional<Out> losses,
                          std::optional<Out> greedy, std::optional<Out> dx,
                          std::optional<Out> dweight, int64_t ignore_index, bool independent_rows) {
  CudaStream& cuda = on_cuda(stream);
  check_linear_cross_entropy(x, weight, targets, d_losses, loss, losses, greedy, dx, dweight);
  const int64_t rows = x.dim(0);
  const Scratch count(stream, sizeof(TargetCount));
  std::optional<Scratch> own;
  if (!losses) own.emplace(stream, static_cast<size_t>(rows) * sizeof(float));
  float* const of_rows = losses ? losses->data<float>() : own->as<float>();
  count_targets(cuda, targets, weight.dim(0), ignore_index, count.as<TargetCount>());
  if (rows > 0 && weight.dim(0) > 0) {
    with_float("x", x, [&]<class T>() {
      run<T>(cuda, {rows, x.dim(1), weight.dim(0), ignore_index, independent_rows, &x, &weight,
                    &targets, d_losses ? d_losses->data<float>() : nullptr, dx ? &*dx : nullptr,
                    dweight ? &*dweight : nullptr, of_rows,
                    greedy ? greedy->data<int32_t>() : nullptr, count.as<TargetCount>()});
    });
  } else {
    for (const std::optional<Out>* out : {&losses, &greedy, &dweight}) {
      if (*out && (*out)->bytes() > 0) {
        LF_CUDA_CHECK(cudaMemsetAsync((*out)->raw(), 0, (*out)->bytes(), cuda.compute()));
      }
    }
  }
  if (loss) mean_loss(cuda, of_rows, rows, count.as<TargetCount>(), loss->data<float>());
}

}  // namespace llamaforge::cuda

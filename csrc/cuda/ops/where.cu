// y = condition ? a : b, with NumPy broadcasting. condition is i32, true if not 0; a, b and y have
// one dtype and are copied bit by bit. Reads 3 and writes 1 tensor.
#include "cuda/ops/broadcast.h"
#include "cuda/ops/cuda_ops.h"
#include "ops/checks/indexing.h"

namespace llamaforge::cuda {

namespace {

template <int kCount, class Bits>
__global__ void where_kernel(const int32_t* condition, const Bits* a, const Bits* b, Bits* y,
                             const __grid_constant__ Broadcast<3> plan) {
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kCount; i < plan.numel;
       i += int64_t{gridDim.x} * blockDim.x * kCount) {
    int64_t offsets[3];
    locate(plan, i, offsets);
    const auto chooses = load_operand<int32_t, kCount>(condition, offsets[0], plan.advances[0]);
    const auto if_true = load_operand<Bits, kCount>(a, offsets[1], plan.advances[1]);
    auto result = load_operand<Bits, kCount>(b, offsets[2], plan.advances[2]);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (chooses.value[k] != 0) result.value[k] = if_true.value[k];
    }
    store_pack(y + i, result);
  }
}

template <class Bits>
void select(CudaStream& cuda, const Tensor& condition, const Tensor& a, const Tensor& b,
            const Tensor& y) {
  constexpr int kCount = 16 / sizeof(Bits);
  const auto plan = plan_broadcast<3, uint32_t>(y.shape, {&condition, &a, &b});
  const auto* at = condition.data<int32_t>();
  const auto *first = static_cast<const Bits*>(a.raw()),
             *second = static_cast<const Bits*>(b.raw());
  auto* to = static_cast<Bits*>(y.raw());
  const bool packs = rows_take_packs<kCount>(plan) && takes_packs<Bits, kCount>({to}) &&
                     (!plan.advances[0] || takes_packs<int32_t, kCount>({at})) &&
                     (!plan.advances[1] || takes_packs<Bits, kCount>({first})) &&
                     (!plan.advances[2] || takes_packs<Bits, kCount>({second}));
  if (packs) {
    where_kernel<kCount>
        <<<blocks_for(cuda, plan.numel, kThreads * kCount), kThreads, 0, cuda.compute()>>>(
            at, first, second, to, plan);
  } else {
    where_kernel<1><<<blocks_for(cuda, plan.numel), kThreads, 0, cuda.compute()>>>(
        at, first, second, to, plan);
  }
  check_launch();
}

}  // namespace

void where(Stream& stream, In condition, In a, In b, Out y) {
  check_where(condition, a, b, y);
  CudaStream& cuda = on_cuda(stream);
  size_of(y.dtype) == 2 ? select<uint16_t>(cuda, condition, a, b, y)
                        : select<uint32_t>(cuda, condition, a, b, y);
}

}  // namespace llamaforge::cuda

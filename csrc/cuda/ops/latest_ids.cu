// The ids of a step, of which some are results of the step before. A source beyond the latest ids
// is reported; its id is then 0.
#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/launch.h"
#include "ops/checks/latest_ids.h"

namespace llamaforge::cuda {

namespace {

__global__ void latest_kernel(const int32_t* __restrict__ known, const int32_t* __restrict__ source,
                              const int32_t* __restrict__ latest, int32_t* __restrict__ ids,
                              int count, int most, FaultSite site) {
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (n >= count) return;
  const int from = source[n];
  if (from >= most) report(site, from, n, most - 1);
  ids[n] = from < 0 ? known[n] : from < most ? latest[from] : 0;
}

}  // namespace

void latest_ids(Stream& stream, In known, In source, In latest, Out ids) {
  CudaStream& cuda = on_cuda(stream);
  const auto count = static_cast<int>(check_latest_ids(known, source, latest, ids));
  if (count == 0) return;
  const FaultSite site =
      cuda.fault_site("ERR_INDEX", "source {} of id {} is outside the latest ids 0..{}");
  latest_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                  cuda.compute()>>>(known.data<int32_t>(), source.data<int32_t>(),
                                    latest.data<int32_t>(), ids.data<int32_t>(), count,
                                    static_cast<int>(latest.numel()), site);
  check_launch();
}

}  // namespace llamaforge::cuda

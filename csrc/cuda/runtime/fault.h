// Reports bad data that only a kernel can see, such as a token id outside the vocabulary or a logit
// that is NaN. The kernel records one fault, that of whichever thread comes first, and the next
// wait throws it as an error with the op's name. Floating-point results of such an op are NaN or
// left out, and integer results are meaningless; nothing is read out of bounds.
//
//   const FaultSite site = cuda.fault_site("ERR_INDEX", "id {} of row {} is not in 0..{}");   //
//   host, inside the op if (id < 0 || id >= vocab) report(site, id, row, vocab - 1); // kernel
#pragma once

#include <cuda_runtime_api.h>

namespace llamaforge::cuda {

constexpr int kFaultValues = 4;

struct FaultRecord {
  int site;  // 0: none, otherwise 1 + the number of the site
  int unused;
  double values[kFaultValues];
};

struct FaultSite {
  FaultRecord* record;
  int number;
};

#ifdef __CUDACC__
// Values fill the {} of the site's pattern in their order.
__device__ inline void report(const FaultSite& site, double a = 0, double b = 0, double c = 0,
                              double d = 0) {
  if (atomicCAS(&site.record->site, 0, site.number + 1) != 0) return;
  site.record->values[0] = a;
  site.record->values[1] = b;
  site.record->values[2] = c;
  site.record->values[3] = d;
}
#endif

}  // namespace llamaforge::cuda

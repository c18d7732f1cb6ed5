// The ids of a step, of which some are results of the step before.
#include "ops/checks/latest_ids.h"

#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void latest_ids(Stream&, In known, In source, In latest, Out ids) {
  const int64_t count = check_latest_ids(known, source, latest, ids);
  const int32_t *own = known.data<int32_t>(), *from = source.data<int32_t>(),
                *last = latest.data<int32_t>();
  for (int64_t n = 0; n < count; ++n) {
    if (from[n] < latest.numel()) continue;
    throw Error("ERR_INDEX", format("source {} of id {} is outside the latest ids 0..{}", from[n],
                                    n, latest.numel() - 1));
  }
  int32_t* to = ids.data<int32_t>();
  for (int64_t n = 0; n < count; ++n) to[n] = from[n] < 0 ? own[n] : last[from[n]];
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

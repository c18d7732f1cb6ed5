// Checks our declarations of NCCL against NVIDIA's own, where the header is installed.
#include "cuda/comm/nccl.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <type_traits>

namespace llamaforge::cuda::nccl {

static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
static_assert(kSuccess == ncclSuccess && kInProgress == ncclInProgress &&
              sizeof(Result) == sizeof(ncclResult_t));
static_assert(kInt32 == ncclInt32 && kFloat32 == ncclFloat32 && kBfloat16 == ncclBfloat16);
static_assert(kSum == ncclSum && kAverage == ncclAvg);
static_assert(kUndefined == NCCL_CONFIG_UNDEF_INT);
static_assert(sizeof(Config) <= sizeof(ncclConfig_t));
static_assert(offsetof(Config, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(Config, cga_cluster_size) == offsetof(ncclConfig_t, cgaClusterSize));
static_assert(offsetof(Config, least_ctas) == offsetof(ncclConfig_t, minCTAs));
static_assert(offsetof(Config, most_ctas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(Config, net_name) == offsetof(ncclConfig_t, netName));
static_assert(offsetof(Config, split_share) == offsetof(ncclConfig_t, splitShare));

// Compares functions by the number and sizes of their arguments.
template <class Ours, class Theirs>
constexpr size_t arguments_differ = 1;
template <class... A, class... B>
constexpr size_t arguments_differ<Result (*)(A...), ncclResult_t(B...)> =
    sizeof...(A) != sizeof...(B) ? 1 : (0 + ... + (sizeof(A) != sizeof(B)));
#define LF_SAME(name) \
  static_assert(arguments_differ<decltype(Nccl::name), decltype(nccl##name)> == 0)
LF_SAME(GetVersion);
LF_SAME(GetUniqueId);
LF_SAME(CommInitRankConfig);
LF_SAME(CommGetAsyncError);
LF_SAME(CommFinalize);
LF_SAME(CommDestroy);
LF_SAME(CommAbort);
LF_SAME(AllReduce);
LF_SAME(ReduceScatter);
LF_SAME(AllGather);
LF_SAME(Broadcast);
#undef LF_SAME

}  // namespace llamaforge::cuda::nccl
#endif

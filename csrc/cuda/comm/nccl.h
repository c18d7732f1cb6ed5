// The part of NCCL's interface that we use. NCCL is opened at run time, so the interface is
// declared here, as for cuBLASLt. nccl_check.cpp compares these declarations with NVIDIA's header
// where it is installed. NCCL 2.18 or newer.
#pragma once

#include <cuda_runtime_api.h>

#include <climits>
#include <cstddef>
#include <string>

namespace llamaforge::cuda {

namespace nccl {

using Result = int;
constexpr Result kSuccess = 0, kInProgress = 7;
using Communicator = void*;

struct UniqueId {
  char bytes[128];
};

constexpr int kUndefined = INT_MIN;

// The configuration as of NCCL 2.18. NCCL reads `size` bytes of it and uses its own defaults for
// newer fields.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = kUndefined;
  int cga_cluster_size = kUndefined;
  int least_ctas = kUndefined;
  int most_ctas = kUndefined;
  const char* net_name = nullptr;
  int split_share = kUndefined;
};

constexpr int kInt32 = 2, kFloat32 = 7, kBfloat16 = 9;  // data types
constexpr int kSum = 0, kAverage = 4;                   // reductions

}  // namespace nccl

// The functions, named without their `nccl` prefix.
struct Nccl {
  nccl::Result (*GetVersion)(int*);
  nccl::Result (*GetUniqueId)(nccl::UniqueId*);
  const char* (*GetErrorString)(nccl::Result);
  const char* (*GetLastError)(nccl::Communicator);
  nccl::Result (*CommInitRankConfig)(nccl::Communicator*, int size, nccl::UniqueId, int rank,
                                     nccl::Config*);
  nccl::Result (*CommGetAsyncError)(nccl::Communicator, nccl::Result*);
  nccl::Result (*CommFinalize)(nccl::Communicator);
  nccl::Result (*CommDestroy)(nccl::Communicator);
  nccl::Result (*CommAbort)(nccl::Communicator);
  nccl::Result (*AllReduce)(const void*, void*, size_t count, int type, int reduction,
                            nccl::Communicator, cudaStream_t);
  nccl::Result (*ReduceScatter)(const void*, void*, size_t output_count, int type, int reduction,
                                nccl::Communicator, cudaStream_t);
  nccl::Result (*AllGather)(const void*, void*, size_t input_count, int type, nccl::Communicator,
                            cudaStream_t);
  nccl::Result (*Broadcast)(const void*, void*, size_t count, int type, int root,
                            nccl::Communicator, cudaStream_t);

  std::string path;
  // Returns for example "NCCL 2.28.3 from /path".
  std::string description() const;
};

// Opens NCCL on first use, which must be on the JS thread because it sets an environment variable.
// Throws ERR_DEVICE with every place tried. If LLAMAFORGE_NCCL names a file, only that file is
// tried.
const Nccl& nccl_library();

}  // namespace llamaforge::cuda

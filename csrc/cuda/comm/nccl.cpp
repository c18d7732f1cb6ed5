#include "cuda/comm/nccl.h"

#include <cstdlib>

#include "cuda/runtime/runtime_library.h"
#include "runtime/error.h"

namespace llamaforge::cuda {

namespace {

constexpr int kOldest = 21800;

// Turns 21803 into "2.18.3"; codes of NCCL before 2.9 have one digit less.
std::string version_text(int code) {
  const int major = code < 10000 ? 1000 : 10000;
  return format("{}.{}.{}", code / major, code % major / 100, code % 100);
}

Nccl load() {
  // The NVLink switch adds in an order of its own, and a multicast that is not torn down keeps the
  // switch busy for other users of the host. So NVLink SHARP is off unless the user has set the
  // variable. NCCL reads it once, when it is loaded.
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  const std::string major = std::to_string(CUDART_VERSION / 1000);
  const RuntimeLibrary library = open_library(
      {"NCCL", "libnccl.so.2", "ncclGetVersion", "LLAMAFORGE_NCCL", "nvidia-nccl-cu" + major});
  Nccl functions = {};
  functions.path = library.path;
#define LF_BIND(name) bind(library, "nccl" #name, functions.name)
  LF_BIND(GetVersion);
  int version = 0;
  if (functions.GetVersion(&version) != nccl::kSuccess || version < kOldest) {
    throw Error("ERR_DEVICE",
                format("{} is NCCL {}; 2.18 or newer is needed: pip install nvidia-nccl-cu{}",
                       library.path, version_text(version), major));
  }
  LF_BIND(GetUniqueId);
  LF_BIND(GetErrorString);
  LF_BIND(GetLastError);
  LF_BIND(CommInitRankConfig);
  LF_BIND(CommGetAsyncError);
  LF_BIND(CommFinalize);
  LF_BIND(CommDestroy);
  LF_BIND(CommAbort);
  LF_BIND(AllReduce);
  LF_BIND(ReduceScatter);
  LF_BIND(AllGather);
  LF_BIND(Broadcast);
#undef LF_BIND
  return functions;
}

}  // namespace

std::string Nccl::description() const {
  int version = 0;
  GetVersion(&version);
  return format("NCCL {} from {}", version_text(version), path);
}

const Nccl& nccl_library() {
  static const Nccl library = load();
  return library;
}

}  // namespace llamaforge::cuda

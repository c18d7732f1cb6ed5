// The plugin's only exported function. A kernel of ops.def that has no body in this folder is a
// link error here.
#include "runtime/plugin.h"

#include <cstring>

#include "cuda/comm/nccl.h"
#include "cuda/comm/nccl_collectives.h"
#include "cuda/gemm/cublaslt.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/cuda_stream.h"

namespace llamaforge::cuda {

namespace {

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) return 0;
  LF_CUDA_CHECK(error);
  return count;
}

void check_index(int index) {
  if (index < 0 || index >= device_count())
    throw Error("ERR_DEVICE", format("cuda:{} does not exist", index));
}

GpuDescription describe(int index) {
  check_index(index);
  cudaDeviceProp properties;
  LF_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return {properties.name, properties.major, properties.minor, properties.totalGlobalMem};
}

// The device stays the thread's current one. Restoring a previous device that has no context yet
// would create its context.
uint64_t free_bytes(int index) {
  check_index(index);
  LF_CUDA_CHECK(cudaSetDevice(index));
  size_t free = 0, total = 0;
  LF_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

std::shared_ptr<Stream> open(int index) { return std::make_shared<CudaStream>(index); }

// A missing NCCL is reported as text instead of an error, because only training on several GPUs
// needs it.
std::string nccl_description() {
  try {
    return nccl_library().description();
  } catch (const Error& error) {
    return format("no NCCL, which training on several GPUs needs: {}", error.what());
  }
}

void load_products() { cublaslt(); }

void load_collectives() { nccl_library(); }

std::vector<std::string> libraries() { return {cublaslt().description(), nccl_description()}; }

const OpTable kOps = {
#define LF_OP(name, signature) name,
#include "ops/ops.def"
#undef LF_OP
};

}  // namespace

}  // namespace llamaforge::cuda

namespace llamaforge {

const char* build_id() { return LLAMAFORGE_BUILD_ID; }

extern "C" __attribute__((visibility("default"))) const Plugin* llamaforge_cuda_plugin(
    const char* wanted) {
  static const Plugin plugin = {.build_id = build_id(),
                                .ops = &cuda::kOps,
                                .device_count = cuda::device_count,
                                .describe = cuda::describe,
                                .free_bytes = cuda::free_bytes,
                                .open = cuda::open,
                                .libraries = cuda::libraries,
                                .load_products = cuda::load_products,
                                .load_collectives = cuda::load_collectives,
                                .collectives_id = cuda::nccl_id,
                                .open_collectives = cuda::open_collectives};
  return std::strcmp(wanted, build_id()) == 0 ? &plugin : nullptr;
}

}  // namespace llamaforge

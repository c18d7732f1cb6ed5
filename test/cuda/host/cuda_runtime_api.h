// A stand-in for CUDA's header in tests without a GPU. Device memory is host memory and copies are
// synchronous. While the gate is closed, no event completes and no wait ends.
#pragma once

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

struct FakeGpu {
  std::mutex mutex;
  std::condition_variable opened;
  bool open = true;
  size_t room = SIZE_MAX;  // bytes that may still be allocated
  int waiting = 0;         // threads at the gate
  std::map<void*, size_t> allocated;

  void set_open(bool value) {
    std::lock_guard lock(mutex);
    open = value;
    opened.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    ++waiting;
    opened.notify_all();
    opened.wait(lock, [this] { return open; });
    --waiting;
  }
  void await_waiting(int count) {
    std::unique_lock lock(mutex);
    opened.wait(lock, [&] { return waiting >= count; });
  }
};
inline FakeGpu gpu;

enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorNotReady,
  cudaErrorECCUncorrectable,
  cudaErrorNvlinkUncorrectable,
  cudaErrorIllegalAddress,
  cudaErrorLaunchTimeout,
  cudaErrorContextIsDestroyed,
  cudaErrorAssert,
  cudaErrorHardwareStackError,
  cudaErrorIllegalInstruction,
  cudaErrorMisalignedAddress,
  cudaErrorInvalidAddressSpace,
  cudaErrorInvalidPc,
  cudaErrorNotSupported,
  cudaErrorLaunchFailure,
  cudaErrorDevicesUnavailable,
  cudaErrorUnknown,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
};
constexpr unsigned cudaEventDisableTiming = 1, cudaEventBlockingSync = 2, cudaStreamNonBlocking = 1,
                   cudaHostAllocDefault = 0;
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  std::lock_guard lock(gpu.mutex);
  if (bytes > gpu.room) return cudaErrorMemoryAllocation;
  gpu.room -= bytes;
  *memory = std::malloc(bytes);
  gpu.allocated[*memory] = bytes;
  return cudaSuccess;
}
// Waits for the device; CUDA's own function may do that too.
inline cudaError_t cudaFree(void* memory) {
  gpu.wait();
  std::lock_guard lock(gpu.mutex);
  gpu.room += gpu.allocated[memory];
  gpu.allocated.erase(memory);
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  return cudaMalloc(memory, bytes);
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return cudaFree(memory); }
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return *free = *total = gpu.room, cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return *memory = std::malloc(bytes), cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return gpu.wait(), cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return gpu.wait(), cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = static_cast<cudaEvent_t>(std::malloc(1)), cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return std::free(event), cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t*, unsigned, int) {
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetStreamPriorityRange(int*, int*) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 9, cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }

// This GPU records no graphs.
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }

#include "cuda/runtime/cuda_error.h"

namespace llamaforge::cuda {

bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorDevicesUnavailable:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

Error error_of(cudaError_t error, const char* call) {
  cudaGetLastError();
  const std::string text =
      format("{} ({}) from {}", cudaGetErrorString(error), cudaGetErrorName(error), call);
  if (is_sticky(error)) {
    return Error("ERR_DEVICE_LOST",
                 text +
                     ": the GPU cannot be used any more by this process; start it again from the "
                     "last checkpoint");
  }
  return Error(error == cudaErrorMemoryAllocation ? "ERR_OUT_OF_MEMORY" : "ERR_NATIVE", text);
}

}  // namespace llamaforge::cuda

// Collectives between GPUs, by NCCL on the device's communication stream. Communicators do not
// block: the watchdog's thread notices a rank that does not come or goes away, and calls
// ncclCommAbort.
//
// Buffers are not registered (ncclCommRegister). Registration pays for sums in the NVLink switch
// and in InfiniBand, which have an order of their own (hence NCCL_NVLS_ENABLE=0), and between GPUs
// of a host for memory from ncclMemAlloc. Our memory is from cudaMalloc. Also, either all ranks or
// none must pass registered memory, and a group's views at any offset do not promise that.
#pragma once

#include <memory>
#include <string>

#include "runtime/collectives.h"
#include "runtime/stream.h"

namespace llamaforge::cuda {

// Makes an id for the ranks of one new group.
std::string nccl_id();

// Blocks until the ranks have met. Throws ERR_PEER. A group of one needs no NCCL.
std::shared_ptr<Collectives> open_collectives(const std::shared_ptr<Stream>& stream,
                                              const CollectivesOptions& options);

}  // namespace llamaforge::cuda

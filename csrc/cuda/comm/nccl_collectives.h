// Collectives between GPUs, by NCCL on the device's communication stream. Communicators do not block: a rank that does
// not come, or goes away, is noticed by a thread that looks, and ends in ncclCommAbort.
//
// Buffers are not registered (ncclCommRegister). It pays with the NVLink switch's and InfiniBand's sums, which have an order
// of their own (NCCL_NVLS_ENABLE=0), and between GPUs of a host for memory of ncclMemAlloc; ours is cudaMalloc's, and all
// ranks must pass registered memory or none, which a group's views at any offset do not promise.
#pragma once

#include <memory>
#include <string>

#include "runtime/collectives.h"
#include "runtime/stream.h"

namespace llamaforge::cuda {

// For the ranks of one new group.
std::string nccl_id();

// Blocks until the ranks have met. Throws ERR_PEER. A group of one needs no NCCL.
std::shared_ptr<Collectives> open_collectives(const std::shared_ptr<Stream>& stream, const CollectivesOptions& options);

}  // namespace llamaforge::cuda

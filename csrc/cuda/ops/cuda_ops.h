// Declares the CUDA kernels from ops.def; plugin.cpp builds the table. The body of an op is in
// <op>.cu. It takes the stream that the op is submitted to, checks its arguments and enqueues. It
// runs on the launcher's thread and must not wait for the device.
#pragma once

#include "ops/op_table.h"

namespace llamaforge::cuda {

#define LF_OP(name, signature) void name signature;
#include "ops/ops.def"
#undef LF_OP

}  // namespace llamaforge::cuda

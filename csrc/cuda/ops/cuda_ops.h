// Declarations of the CUDA kernels, from ops.def; plugin.cpp makes the table. A body is in <op>.cu, takes the stream that
// it is submitted to, checks, and enqueues: it runs on the JS thread and must not wait for the device.
#pragma once

#include "ops/op_table.h"

namespace llamaforge::cuda {

#define LF_OP(name, signature) void name signature;
#include "ops/ops.def"
#undef LF_OP

}  // namespace llamaforge::cuda

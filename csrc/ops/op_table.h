// The table of kernels of one device, made from ops.def. The CPU fills its table at compile time; a
// plugin hands one over.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace llamaforge {

struct OpTable {
#define LF_OP(name, signature) void(*name) signature;
#include "ops/ops.def"
#undef LF_OP
};

}  // namespace llamaforge

// Declarations of the CPU kernels, from ops.def. Every source of this folder is compiled once per
// instruction set, each time in a namespace of its own (LF_CPU_NAMESPACE); cpu_table.cpp makes that
// set's table.
#pragma once

#include "ops/op_table.h"

#ifndef LF_CPU_NAMESPACE
#error "LF_CPU_NAMESPACE is set by the build: cpu_v3, cpu_v4 or cpu_generic"
#endif

namespace llamaforge::LF_CPU_NAMESPACE {

#define LF_OP(name, signature) void name signature;
#include "ops/ops.def"
#undef LF_OP

}  // namespace llamaforge::LF_CPU_NAMESPACE

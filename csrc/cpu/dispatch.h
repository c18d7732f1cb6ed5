// Picks the fastest set of CPU kernels that this machine can run.
#pragma once

#include "ops/op_table.h"

namespace llamaforge {

struct CpuKernels {
  const OpTable* table;
  const char* instruction_set;
};

// Throws ERR_DEVICE if the machine can run no set. On x86-64, LLAMAFORGE_CPU_ISA=x86-64-v3 asks for
// the lower set (tests do). On ARM64 there is one set, which every such processor runs.
CpuKernels cpu_kernels();

}  // namespace llamaforge

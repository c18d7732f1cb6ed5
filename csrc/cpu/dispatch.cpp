// This file is compiled once, for the baseline instruction set, because it runs before anything is
// known about the machine.
#include "cpu/dispatch.h"

#include <cstdlib>
#include <string>

namespace llamaforge {

#if defined(__x86_64__)
#if defined(LF_HAS_CPU_V3)
namespace cpu_v3 {
const OpTable& op_table();
}
#endif
#if defined(LF_HAS_CPU_V4)
namespace cpu_v4 {
const OpTable& op_table();
}
#endif

// The build chooses the sets that exist (LLAMAFORGE_CPU_SETS); packages have both.
CpuKernels cpu_kernels() {
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bf16");
  const char* wanted = std::getenv("LLAMAFORGE_CPU_ISA");
  const std::string isa = wanted ? wanted : "";
  if (!isa.empty() && isa != "x86-64-v3" && isa != "avx512-bf16") {
    throw Error("ERR_DEVICE",
                format("LLAMAFORGE_CPU_ISA is \"{}\": expected x86-64-v3 or avx512-bf16", isa));
  }
  if (!v3)
    throw Error("ERR_DEVICE", "this CPU lacks AVX2 and FMA, which LlamaForge's CPU kernels need");
  if (isa == "avx512-bf16" && !v4) {
    throw Error("ERR_DEVICE", "LLAMAFORGE_CPU_ISA asks for avx512-bf16, which this CPU lacks");
  }
#if defined(LF_HAS_CPU_V4)
  if (v4 && isa != "x86-64-v3") return {&cpu_v4::op_table(), "avx512-bf16"};
#endif
#if defined(LF_HAS_CPU_V3)
  if (isa != "avx512-bf16") return {&cpu_v3::op_table(), "x86-64-v3"};
#endif
  throw Error("ERR_DEVICE",
              "this build of the addon lacks the CPU kernels asked for: build all sets with "
              "`npm run setup -- --tests`");
}
#else
#if defined(__aarch64__)
#define LF_ONLY_SET cpu_neon
constexpr const char* kOnlySet = "neon";
#else
#define LF_ONLY_SET cpu_generic
constexpr const char* kOnlySet = "generic";
#endif
namespace LF_ONLY_SET {
const OpTable& op_table();
}

CpuKernels cpu_kernels() {
  const char* wanted = std::getenv("LLAMAFORGE_CPU_ISA");
  if (wanted && *wanted && wanted != std::string(kOnlySet)) {
    throw Error("ERR_DEVICE", format("LLAMAFORGE_CPU_ISA is \"{}\": this processor has {} only",
                                     wanted, kOnlySet));
  }
  return {&LF_ONLY_SET::op_table(), kOnlySet};
}
#endif

}  // namespace llamaforge

#include "cpu/cpu_ops.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// A kernel of ops.def without a body in this folder is a link error here.
const OpTable& op_table() {
  static const OpTable table = {
#define LF_OP(name, signature) name,
#include "ops/ops.def"
#undef LF_OP
  };
  return table;
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

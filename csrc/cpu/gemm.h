// Matrix products for CPU kernels that need one inside (linear_cross_entropy): what gemm.cpp runs
// after its checks.
#pragma once

#include <optional>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// One row-major matrix of each batch entry; `shared`: the same matrix for all of them.
struct GemmOperand {
  const void* data;
  bool transposed;  // stored as the transpose of what the product takes
  bool shared = false;
};

struct GemmShape {
  int64_t batch, m, n, k;
  DType input, output;  // both operands have the dtype `input`; sums are f32
  // Whether a row of c must have the same bits for every m. Otherwise few rows are summed in
  // another order.
  bool independent_rows = false;
};

// c (batch,m,n) = a (batch,m,k) · b (batch,k,n), or += with `accumulate`.
void multiply_matrices(Stream& stream, const GemmShape& shape, const GemmOperand& a,
                       const GemmOperand& b, void* c, bool accumulate);

// One b for products with many a of equal shape: it is brought into oneDNN's layout once.
class PreparedOperand {
 public:
  PreparedOperand(Stream& stream, const GemmShape& shape, const GemmOperand& b);
  // c (m,n) = a (m,k) · b, a not transposed.
  void multiply(const void* a, void* c);

 private:
  Stream& stream_;
  GemmShape shape_;
  GemmOperand b_;
  std::optional<Scratch> blocked_;  // null: b is used as it is
};

}  // namespace llamaforge::LF_CPU_NAMESPACE

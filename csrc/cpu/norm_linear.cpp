// A norm and the product that reads it, for the few rows of a decoded token:
//   r = x + skip;  y = rms_norm(r) · weightᵀ, and with SwiGLU  y = silu(gate) · up  of that product
// The CPU runs the ops one after the other; they keep the rows in its caches.
#include "ops/checks/norm_linear.h"
#include "cpu/kernel.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void norm_linear(Stream& stream, In x, std::optional<In> skip, In norm_weight, In weight,
                 std::optional<Out> r, Out y, double eps, bool swiglu) {
  const NormLinearSize size = check_norm_linear(x, skip, norm_weight, weight, r, y, swiglu);
  if (y.numel() == 0) return;
  const Tensor normed = temporary(x, x.shape, x.dtype),
               rstd = temporary(x, {size.rows}, DType::f32);
  if (skip) {
    add_rms_norm_forward(stream, x, *skip, norm_weight, *r, Out{normed}, Out{rstd}, eps);
  } else {
    rms_norm_forward(stream, x, norm_weight, Out{normed}, Out{rstd}, eps);
  }
  if (!swiglu) return gemm(stream, In{normed}, weight, y, false, true, false);
  const Tensor product = temporary(x, {size.rows, size.products}, x.dtype);
  gemm(stream, In{normed}, weight, Out{product}, false, true, false);
  swiglu_forward(stream, In{product}, y);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

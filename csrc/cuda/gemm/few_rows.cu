// y (R,N) = x (R,K) · wᵀ for few rows R, as decoding has them: w (N,K) is read once, which is the
// floor, so a sum costs nothing and each block may repeat the norm in front of the product:
//   r = x + skip;  y = rms_norm(r) · wᵀ;  with SwiGLU  y = silu(gate) · up  of that product
// Each step is rounded as the kernel of its own rounds it (rms_norm.cu, swiglu.cu).
//
// A block has an equal share of the outputs, and takes it in tiles of 16 rows of w, the last of
// which is a part: the rows of an mma.m16n8k16, whose 8 columns are rows of x. With SwiGLU they are
// 8 rows of gate and the 8 rows of up beside them, whose sums lie in one thread. The warps of a
// block divide k, and their sums are added in order, so a row's result depends on neither the other
// rows nor the GPU. The order of k within a product is free, so a lane reads 16 bytes of w and x
// where mma.m16n8k16 wants pairs. A lane always has kAhead blocks of its two rows of w on their way
// in registers, over the end of a tile into the next one.
//
// The kernel starts while the kernels before it still run. If no kernel of the same graph writes w,
// the first blocks of w are on their way before x exists, and the later ones come to the L2 cache.
#include "cuda/gemm/few_rows.cuh"

#include "cuda/gemm/chain.h"
#include "cuda/ops/cuda_ops.h"
#include "ops/checks/norm_linear.h"

namespace llamaforge::cuda {

namespace {

using few::Input;
using few::kBlock;
using few::kRowPad;
using few::kTile;
using few::kWarps;
using few::Sizes;
using few::WholeBlock;

constexpr int kAhead = 8;                     // blocks of 32 columns per lane and chunk
constexpr int kChunk = kWarps * kAhead * 32;  // columns that a block has on their way
constexpr size_t kMostShared = size_t{160} << 10;
constexpr int kPerMultiprocessor = 2;

// kColumns: groups of 8 rows of x. early: nothing in the graph writes w. The pointers have no
// __restrict__, so that no load moves before wait_for_previous().
template <Input kInput, bool kSwiglu, int kColumns>
__global__ void __launch_bounds__(kBlock, kPerMultiprocessor)
    few_rows_kernel(const bfloat16* x, const bfloat16* skip, const bfloat16* norm_weight,
                    const bfloat16* w, bfloat16* r, bfloat16* y, const Sizes sizes, const int each,
                    const bool early) {
  extern __shared__ uint4 shared[];
  __shared__ float sums[2][kWarps][kColumns * 128];
  auto* const rows = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const norm = rows + sizes.rows * (sizes.k + kRowPad);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, k = sizes.k;
  const int chunks = (k + kChunk - 1) / kChunk;

  const int end_output = min((static_cast<int>(blockIdx.x) + 1) * each, sizes.outputs);
  uint4 low[kAhead], high[kAhead];
  // The lane's two rows of w for the tile from this output on; null beyond the block's outputs.
  const auto lines_of = [&](int output, const bfloat16*& first, const bfloat16*& second) {
    const int row = output + g, other = kSwiglu ? row + sizes.outputs : row + 8;
    first = row < end_output ? w + int64_t{row} * k : nullptr;
    second = (kSwiglu ? row : other) < end_output ? w + int64_t{other} * k : nullptr;
  };
  const auto column = [&](int chunk, int u) {
    return chunk * kChunk + ((u / 2 * kWarps + warp) * 2 + u % 2) * 32 + t * 8;
  };
  const auto fetch = [&](const bfloat16* first, const bfloat16* second, int at, int u) {
    low[u] = at < k && first ? *reinterpret_cast<const uint4*>(first + at) : make_uint4(0, 0, 0, 0);
    high[u] =
        at < k && second ? *reinterpret_cast<const uint4*>(second + at) : make_uint4(0, 0, 0, 0);
  };
  int output = blockIdx.x * each;
  const bfloat16 *first, *second;
  lines_of(output, first, second);
  const auto begin = [&] {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) fetch(first, second, column(0, u), u);
  };

  let_next_start();
  if (early) {
    begin();
#if __CUDA_ARCH__ >= 900
    // The rest of the tile, and the next tile, come to the L2 cache meanwhile.
    const auto prefetch = [&](const bfloat16* line, int from) {
      if (line && from < k) {
        hopper::prefetch(line + from, (k - from) * 2);
      }
    };
    if (warp == 0 && t < 2) {
      prefetch(t == 0 ? first : second, min(k, kChunk));
      const bfloat16 *a, *b;
      lines_of(output + kTile<kSwiglu>, a, b);
      prefetch(t == 0 ? a : b, 0);
    }
#endif
    if constexpr (kInput != Input::kPlain) few::read_norm(norm, norm_weight, k);
  }
  wait_for_previous();
  if (!early) begin();

  if constexpr (kInput != Input::kPlain) {
    if (!early) few::read_norm(norm, norm_weight, k);
  }
  few::read_rows<WholeBlock, kInput>(rows, x, skip, norm, r, sizes);
  __syncthreads();

  float sum[2][4] = {};
  int buffer = 0;
  for (int chunk = 0;;) {
    const bool ends = chunk + 1 == chunks;
    const int next_output = ends ? output + kTile<kSwiglu> : output,
              next_chunk = ends ? 0 : chunk + 1;
    const bool more = next_output < end_output;
    if (ends && more) lines_of(next_output, first, second);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      few::multiply_rows<kColumns>(sum, low[u], high[u], rows, column(chunk, u), sizes);
      if (more) fetch(first, second, column(next_chunk, u), u);
    }
    if (ends) {
      few::finish_tile<WholeBlock, kSwiglu, kColumns>(
          sum, sums[buffer], output, end_output, sizes, [&](int row, int own, bfloat16 result) {
            y[int64_t{row} * sizes.outputs + own] = result;
          });
      buffer ^= 1;
      output = next_output;
      if (!more) break;
    }
    chunk = next_chunk;
  }
}

// ---- launches -----------------------------------------------------------------------------------

template <Input kInput, bool kSwiglu>
void launch(CudaStream& cuda, const FewRows& call) {
  const Sizes sizes = few::sizes_of(call);
  const int each = few::outputs_of_block(cuda, sizes.outputs, kTile<kSwiglu>, kPerMultiprocessor);
  const auto blocks = static_cast<unsigned>((sizes.outputs + each - 1) / each);
  const size_t bytes = few::row_bytes(call);
  const auto kernel =
      sizes.rows <= 8 ? few_rows_kernel<kInput, kSwiglu, 1> : few_rows_kernel<kInput, kSwiglu, 2>;
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(bytes)));
  launch_early(cuda, kernel, blocks, kBlock, bytes, call.x, call.skip, call.norm_weight, call.w,
               call.r, call.y, sizes, each, few::early(cuda, call));
}

}  // namespace

void launch_few_rows(CudaStream& cuda, const FewRows& call) {
  if (launch_staged_rows(cuda, call)) return;
  few::with_kind(call, [&]<Input kInput, bool kSwiglu>() { launch<kInput, kSwiglu>(cuda, call); });
}

bool few_rows(CudaStream& cuda, const FewRows& call) {
  const bool takes = call.rows >= 1 && call.rows <= kFewRows && call.k >= 8 && call.k % 8 == 0 &&
                     call.products >= 1 && few::row_bytes(call) <= kMostShared &&
                     aligned16({call.x, call.w, call.norm_weight, call.skip, call.r});
  if (!takes) return false;
  if (!chain_product(cuda, call)) launch_few_rows(cuda, call);
  return true;
}

bool multiply_few_rows(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a,
                       const GemmOperand& b, void* c, bool accumulate) {
  const bool takes = shape.batch == 1 && shape.m <= kFewRows && !a.transposed && b.transposed &&
                     !accumulate && shape.n <= INT32_MAX / 2 && shape.k <= 1 << 20 &&
                     shape.input == DType::bf16 && shape.output == DType::bf16;
  if (!takes) return false;
  FewRows call = {};
  call.x = static_cast<const bfloat16*>(a.data);
  call.w = static_cast<const bfloat16*>(b.data);
  call.y = static_cast<bfloat16*>(c);
  call.rows = static_cast<int>(shape.m);
  call.products = static_cast<int>(shape.n);
  call.k = static_cast<int>(shape.k);
  return few_rows(cuda, call);
}

// ---- the op -------------------------------------------------------------------------------------

namespace {

bool in_one_kernel(CudaStream& cuda, const NormLinearSize& size, const Tensor& x,
                   const std::optional<In>& skip, const Tensor& norm_weight, const Tensor& weight,
                   const std::optional<Out>& r, const Tensor& y, double eps, bool swiglu) {
  if (x.dtype != DType::bf16 || norm_weight.dtype != DType::bf16 || size.rows > kFewRows ||
      size.inputs > 1 << 20 || size.products > INT32_MAX / 2) {
    return false;
  }
  FewRows call = {};
  call.x = x.data<bfloat16>();
  call.w = weight.data<bfloat16>();
  call.y = y.data<bfloat16>();
  call.rows = static_cast<int>(size.rows);
  call.products = static_cast<int>(size.products);
  call.k = static_cast<int>(size.inputs);
  call.swiglu = swiglu;
  call.norm_weight = norm_weight.data<bfloat16>();
  call.skip = skip ? skip->data<bfloat16>() : nullptr;
  call.r = r ? r->data<bfloat16>() : nullptr;
  call.eps = static_cast<float>(eps);
  return few_rows(cuda, call);
}

}  // namespace

void norm_linear(Stream& stream, In x, std::optional<In> skip, In norm_weight, In weight,
                 std::optional<Out> r, Out y, double eps, bool swiglu) {
  CudaStream& cuda = on_cuda(stream);
  const NormLinearSize size = check_norm_linear(x, skip, norm_weight, weight, r, y, swiglu);
  if (y.numel() == 0) return;
  if (in_one_kernel(cuda, size, x, skip, norm_weight, weight, r, y, eps, swiglu)) return;
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

}  // namespace llamaforge::cuda

// Matrix products: of bf16 by oneDNN's matmul (JIT-compiled for the machine it runs on) where the
// CPU has instructions for them, all others by gemm_packed.cpp.
//
// oneDNN's f32 products were 10% faster with AVX-512 and 5% with AVX2, before ours read rows where
// they are stored. But they divide long sums between threads where c is small for the team: their
// bits change with the number of threads, and so do those of a resume on another machine. Its bf16
// products gave equal bits for 1 to 4 threads; more were not compared.
//
// A primitive is compiled once per shape and kept, with memory objects that only get new addresses
// per call. A product of many rows first brings b into the blocked layout that oneDNN prefers:
// 15-60 us once, where the plain layout costs every thread a copy of its own. Measured on 2 Zen 5
// cores at 2048 rows: 700 -> 866 GFLOP/s. For few rows (generation) the time is that of reading the
// weights once; there b stays as it is.
//
// Weight gradients (aᵀ · b) stay with oneDNN as they are: 620-710 in bf16. A kernel of our own on
// the tiles of tile.h, both operands packed block by block, reached 600-750 alone and nothing
// within a training step.
#include "cpu/gemm.h"

#include <array>
#include <cstring>
#include <map>
#include <optional>

#include "cpu/cpu_ops.h"
#include "cpu/gemm_packed.h"
#include "ops/checks/gemm.h"
#include "runtime/cpu_stream.h"
#include "runtime/room.h"

// Sets of kernels without instructions for bf16 do not need oneDNN.
#if defined(__AVX512BF16__)
#include <omp.h>
#include <dnnl.hpp>
#endif

namespace llamaforge::LF_CPU_NAMESPACE {
#if defined(__AVX512BF16__)
namespace {

// Rows from which bringing b into the blocked layout for one product pays (measured: 400).
constexpr int64_t kRowsWorthReordering = 384;
constexpr size_t kMaximalPlans = 512;  // generation meets a new row count with every prompt
// More than oneDNN takes when it compiles a product. It writes through a null pointer where the
// system refuses it.
constexpr size_t kRoomToCompile = size_t{32} << 20;

dnnl::memory::data_type to_dnnl(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::engine& cpu_engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// A compiled product: the primitive and memory objects without an address.
struct Plan {
  std::optional<dnnl::reorder> reorder;  // b to the layout of the primitive
  dnnl::matmul matmul;
  dnnl::memory a, b, b_blocked, c, reorder_scratchpad, matmul_scratchpad;
};

// Whether b goes through the blocked layout.
enum class Layout { automatic, blocked };

// Everything a plan depends on, as a map key. The team size is part of it: oneDNN divides the work
// when it compiles.
using PlanKey = std::array<int64_t, 13>;

dnnl::memory::desc describe(int64_t batch, int64_t rows, int64_t columns, DType dtype,
                            bool transposed) {
  const dnnl::memory::dims strides = {rows * columns, transposed ? 1 : columns,
                                      transposed ? rows : 1};
  if (batch == 1) return {{rows, columns}, to_dnnl(dtype), {strides[1], strides[2]}};
  return {{batch, rows, columns}, to_dnnl(dtype), strides};
}

dnnl::memory without_address(const dnnl::memory::desc& desc) {
  return {desc, cpu_engine(), nullptr};
}

Plan compile(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, bool accumulate,
             Layout layout) {
  const bool batched = shape.batch > 1;
  auto operand = [&](const GemmOperand& x, int64_t rows, int64_t columns) {
    auto desc = describe(x.shared ? 1 : shape.batch, rows, columns, shape.input, x.transposed);
    return batched && x.shared ? desc.reshape({1, rows, columns}) : desc;
  };
  const auto a_desc = operand(a, shape.m, shape.k);
  const auto b_desc = operand(b, shape.k, shape.n);
  const auto c_desc = describe(shape.batch, shape.m, shape.n, shape.output, false);

  const bool may_reorder =
      !batched && (layout == Layout::blocked || shape.m >= kRowsWorthReordering);
  auto b_preferred = b_desc;
  if (may_reorder)
    b_preferred = {{shape.k, shape.n}, to_dnnl(shape.input), dnnl::memory::format_tag::any};

  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const dnnl::matmul::primitive_desc matmul({a_desc, b_preferred, c_desc}, attributes,
                                            cpu_engine());

  Plan plan;
  plan.matmul = dnnl::matmul(matmul);
  plan.a = without_address(a_desc);
  plan.b = without_address(b_desc);
  plan.c = without_address(c_desc);
  plan.matmul_scratchpad = without_address(matmul.scratchpad_desc());
  if (matmul.weights_desc() != b_desc) {
    dnnl::primitive_attr reorder_attributes;
    reorder_attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::reorder::primitive_desc reorder(cpu_engine(), b_desc, cpu_engine(),
                                                matmul.weights_desc(), reorder_attributes);
    plan.reorder = dnnl::reorder(reorder);
    plan.b_blocked = without_address(matmul.weights_desc());
    plan.reorder_scratchpad = without_address(reorder.scratchpad_desc());
  }
  return plan;
}

void require_room_to_compile(Stream& stream) {
  if (has_room(kRoomToCompile)) return;
  static_cast<CpuStream&>(stream).trim();
  if (has_room(kRoomToCompile)) return;
  throw Error("ERR_OUT_OF_MEMORY", format("the system has no {} bytes left, which oneDNN may take "
                                          "to compile a product; {} are in use: use "
                                          "a smaller micro-batch or more recompute",
                                          kRoomToCompile, stream.memory().used));
}

// Plans of this thread: their memory objects hold the addresses of the running call.
Plan& plan_for(Stream& stream, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
               bool accumulate, Layout layout) {
  thread_local std::map<PlanKey, Plan> plans;
  const PlanKey key = {shape.batch,
                       shape.m,
                       shape.n,
                       shape.k,
                       static_cast<int64_t>(shape.input),
                       static_cast<int64_t>(shape.output),
                       a.transposed,
                       b.transposed,
                       a.shared,
                       b.shared,
                       accumulate,
                       omp_get_max_threads(),
                       static_cast<int64_t>(layout)};
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  if (plans.size() >= kMaximalPlans) plans.clear();
  require_room_to_compile(stream);
  return plans.emplace(key, compile(shape, a, b, accumulate, layout)).first->second;
}

dnnl::stream& queue() {
  static thread_local dnnl::stream stream(cpu_engine());
  return stream;
}

// b in the layout that the plan's product takes.
void bring_to_layout(Stream& stream, Plan& plan, const void* b, void* blocked) {
  plan.b.set_data_handle(const_cast<void*>(b));
  plan.b_blocked.set_data_handle(blocked);
  const Scratch scratchpad(stream, plan.reorder_scratchpad.get_desc().get_size() + 1);
  plan.reorder_scratchpad.set_data_handle(scratchpad.as<void>());
  plan.reorder->execute(queue(), {{DNNL_ARG_FROM, plan.b},
                                  {DNNL_ARG_TO, plan.b_blocked},
                                  {DNNL_ARG_SCRATCHPAD, plan.reorder_scratchpad}});
}

// b: in the blocked layout if the plan has one.
void execute(Stream& stream, Plan& plan, const void* a, const void* b, void* c) {
  dnnl::memory& right = plan.reorder ? plan.b_blocked : plan.b;
  plan.a.set_data_handle(const_cast<void*>(a));
  right.set_data_handle(const_cast<void*>(b));
  plan.c.set_data_handle(c);
  const Scratch scratchpad(stream, plan.matmul_scratchpad.get_desc().get_size() + 1);
  plan.matmul_scratchpad.set_data_handle(scratchpad.as<void>());
  plan.matmul.execute(queue(), {{DNNL_ARG_SRC, plan.a},
                                {DNNL_ARG_WEIGHTS, right},
                                {DNNL_ARG_DST, plan.c},
                                {DNNL_ARG_SCRATCHPAD, plan.matmul_scratchpad}});
  queue().wait();
}

// oneDNN computes in bf16 from AVX-512 on; below that it has no kernel at all.
bool has_bfloat16_kernels(Stream& stream) {
  static const bool available = [&stream] {
    require_room_to_compile(stream);
    try {
      compile({1, 16, 16, 16, DType::bf16, DType::f32}, {nullptr, false}, {nullptr, false}, false,
              Layout::automatic);
      return true;
    } catch (const dnnl::error& error) {
      if (error.status != dnnl_unimplemented) throw;
      return false;
    }
  }();
  return available;
}

// Which products are oneDNN's. Its f32 products divide sums between threads where c is small for
// the team.
bool by_onednn(Stream& stream, const GemmShape& shape) {
  return shape.input == DType::bf16 && has_bfloat16_kernels(stream);
}

// oneDNN's exceptions as ours.
template <class Body>
void with_named_errors(const GemmShape& shape, const Body& body) {
  try {
    body();
  } catch (const dnnl::error& error) {
    const bool refused = error.status == dnnl_out_of_memory;
    throw Error(refused ? "ERR_OUT_OF_MEMORY" : "ERR_NATIVE",
                format("oneDNN failed on ({},{})·({},{}): {}", shape.m, shape.k, shape.k, shape.n,
                       error.what()));
  }
}

}  // namespace
#endif

void multiply_matrices(Stream& stream, const GemmShape& shape, const GemmOperand& a,
                       const GemmOperand& b, void* c, bool accumulate) {
  if (shape.batch == 0 || shape.m == 0 || shape.n == 0) return;
  if (shape.k == 0) {
    const int64_t count = shape.batch * shape.m * shape.n;
    if (!accumulate) std::memset(c, 0, static_cast<size_t>(count) * size_of(shape.output));
    return;
  }
#if defined(__AVX512BF16__)
  if (by_onednn(stream, shape)) {
    return with_named_errors(shape, [&] {
      Plan& plan = plan_for(stream, shape, a, b, accumulate, Layout::automatic);
      if (!plan.reorder) return execute(stream, plan, a.data, b.data, c);
      const Scratch blocked(stream, plan.b_blocked.get_desc().get_size());
      bring_to_layout(stream, plan, b.data, blocked.as<void>());
      execute(stream, plan, a.data, blocked.as<void>(), c);
    });
  }
#endif
  multiply_packed(stream, shape, a, b, c, accumulate);
}

PreparedOperand::PreparedOperand(Stream& stream, const GemmShape& shape, const GemmOperand& b)
    : stream_(stream), shape_(shape), b_(b) {
#if defined(__AVX512BF16__)
  if (!by_onednn(stream, shape)) return;
  with_named_errors(shape, [&] {
    Plan& plan = plan_for(stream, shape, {nullptr, false}, b, false, Layout::blocked);
    if (!plan.reorder) return;
    blocked_.emplace(stream, plan.b_blocked.get_desc().get_size());
    bring_to_layout(stream, plan, b.data, blocked_->as<void>());
  });
#endif
}

void PreparedOperand::multiply(const void* a, void* c) {
#if defined(__AVX512BF16__)
  if (blocked_) {
    return with_named_errors(shape_, [&] {
      execute(stream_, plan_for(stream_, shape_, {a, false}, b_, false, Layout::blocked), a,
              blocked_->as<void>(), c);
    });
  }
#endif
  multiply_matrices(stream_, shape_, {a, false}, b_, c, false);
}

namespace {

void checked_gemm(Stream& stream, const Tensor& a, const Tensor& b, const Tensor& c,
                  bool transpose_a, bool transpose_b, bool accumulate, bool independent_rows) {
  const GemmSize size = check_gemm(a, b, c, transpose_a, transpose_b);
  multiply_matrices(stream,
                    {size.batch, size.m, size.n, size.k, a.dtype, c.dtype, independent_rows},
                    {a.raw(), transpose_a, size.a_shared}, {b.raw(), transpose_b, size.b_shared},
                    c.raw(), accumulate);
}

}  // namespace

void gemm(Stream& stream, In a, In b, Out c, bool transpose_a, bool transpose_b,
          bool independent_rows) {
  checked_gemm(stream, a, b, c, transpose_a, transpose_b, false, independent_rows);
}

void gemm_accumulate(Stream& stream, In a, In b, InOut c, bool transpose_a, bool transpose_b,
                     bool independent_rows) {
  checked_gemm(stream, a, b, c, transpose_a, transpose_b, true, independent_rows);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

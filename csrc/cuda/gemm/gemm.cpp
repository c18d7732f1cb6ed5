// Matrix products by cuBLASLt, with bf16 or f32 operands and sums in f32 (TF32 only with
// LLAMAFORGE_TF32=1).
//
// cuBLASLt is column-major: our row-major c = a·b is its cᵀ = bᵀ·aᵀ, so our b is its first operand
// and nothing is moved. Of the algorithms that its heuristics offer, the fastest is taken: on an
// H100 the first offer is up to 10% slower than the best at our shapes. The algorithms are timed on
// the product's own operands when the product first occurs; the choice is cached on disk
// (gemm_cache.h). LLAMAFORGE_GEMM=first takes the first one without timing.
//
// Training runs a GPU at its power limit, where the clock falls until the work fits: an H200 trains
// at 1,550 MHz, not at its 1,980. There a product costs its energy, not its cycles. So the best
// algorithms of a training's large products run once more, each for long enough that the clock
// settles at the algorithm's own power, and the fastest of these runs is taken. This choice made
// TinyLlama-1.1B train 2% faster (docs/LOG.md, 2026-12-01).
//
// Algorithms that add up parts in the output's own bf16 are left out, and none uses atomic
// additions: a product gives the same bits every time. Products with few rows have kernels of their
// own (few_rows.cu, gemv.cu). Products in fp8 are made the same way, with a scale of each operand
// in device memory.
//
// Products of an evaluation come with ever new numbers of rows, and timing would take longer than
// they do. With `independent_rows` the heuristics choose one algorithm, for many rows, and all
// numbers of rows take it: the sum of a row then has one order. Algorithms that split k are left
// out, because they gain nothing where there are many rows.
#include "cuda/gemm/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "cuda/gemm/few_rows.h"
#include "cuda/gemm/gemm_context.h"
#include "cuda/gemm/gemv.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/fp8.cuh"
#include "cuda/runtime/launch.h"
#include "ops/checks/gemm.h"
#include "runtime/settings.h"

namespace llamaforge::cuda {

namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // NVIDIA's recommendation for Hopper
constexpr int kCandidates = 64;                       // cuBLASLt 13 offers at most 8
constexpr int64_t kManyRows = 8192;                   // of a pass of an evaluation
constexpr size_t kMaximalPlans = 2048;  // generation meets a new row count with every prompt
// Products below these sizes are not worth the milliseconds of timing.
constexpr double kFlopsWorthTiming = 1 << 28;
constexpr double kBytesWorthTiming = 8 << 20;
constexpr float kMillisecondsPerCandidate = 3;
// Of algorithms this close the earliest offer is taken, so that noise does not choose.
constexpr float kSameSpeed = 1.003f;
// Products from this size on reach the power limit. A training repeats them: the rows are those of
// whole windows, or the product adds to a gradient. Prompts of generation come with ever new
// numbers of rows, seldom whole hundreds, and must not wait for seconds of runs.
constexpr double kFlopsAtPowerLimit = 5e10;
constexpr int64_t kRowsOfTraining = 4096, kRowsOfWindows = 256;
// Algorithms this close to the fastest at full clock run again at the power limit.
constexpr float kFinalist = 1.12f;
// Time in which the clock settles, and of the run that counts.
constexpr float kMillisecondsToSettle = 120, kMillisecondsAtPowerLimit = 150;

void check_lt(lt::Status status, const char* call) {
  if (status != 0)
    throw Error("ERR_NATIVE", format("cuBLASLt's {} failed with status {}", call, status));
}

cudaDataType to_cuda(DType dtype) {
  switch (dtype) {
    case DType::bf16: return CUDA_R_16BF;
    case DType::f8e4m3: return CUDA_R_8F_E4M3;
    case DType::f8e5m2: return CUDA_R_8F_E5M2;
    case DType::f32:
    case DType::i32: break;
  }
  return CUDA_R_32F;
}

// Returns the part of a plan's key that names the dtypes.
int64_t dtypes_of(const GemmShape& shape, const Fp8Operands* fp8) {
  const int64_t dtypes =
      static_cast<int64_t>(shape.input) * 10 + static_cast<int64_t>(shape.output);
  return fp8 ? dtypes + 100 * static_cast<int64_t>(fp8->b) + 1000 * static_cast<int64_t>(fp8->fast)
             : dtypes;
}

// Returns the largest power of two up to 16 that divides the address; no kernel asks for more.
int64_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return static_cast<int64_t>(std::min<uintptr_t>(16, address & (~address + 1)));
}

std::string prefix_of(const CudaStream& cuda, const CublasLt& lt) {
  cudaDeviceProp properties;
  LF_CUDA_CHECK(cudaGetDeviceProperties(&properties, cuda.index()));
  return format("{} {} {} at power limit: ", lt.GetVersion(), properties.name,
                properties.multiProcessorCount);
}

bool times_algorithms() {
  const char* value = std::getenv("LLAMAFORGE_GEMM");
  if (!value || std::strcmp(value, "tuned") == 0) return true;
  if (std::strcmp(value, "first") == 0) return false;
  throw Error("ERR_ARGUMENT", format("LLAMAFORGE_GEMM is \"{}\": expected tuned or first", value));
}

template <class Key>
std::string name_of_product(const Key& key) {
  std::string name;
  for (int64_t part : key) name += (name.empty() ? "" : " ") + std::to_string(part);
  return name;
}

double flops_of(const GemmShape& shape) {
  return 2 * static_cast<double>(shape.batch) * static_cast<double>(shape.m) *
         static_cast<double>(shape.n) * static_cast<double>(shape.k);
}

bool is_worth_timing(const GemmShape& shape) {
  const double batch = static_cast<double>(shape.batch), m = static_cast<double>(shape.m);
  const double n = static_cast<double>(shape.n), k = static_cast<double>(shape.k);
  const double bytes = batch * (m * k + k * n) * static_cast<double>(size_of(shape.input)) +
                       batch * m * n * static_cast<double>(size_of(shape.output));
  return flops_of(shape) >= kFlopsWorthTiming || bytes >= kBytesWorthTiming;
}

bool reaches_power_limit(const GemmShape& shape, bool accumulate) {
  const bool windows = shape.m >= kRowsOfTraining && shape.m % kRowsOfWindows == 0;
  return flops_of(shape) >= kFlopsAtPowerLimit && (accumulate || windows);
}

}  // namespace

GemmContext::GemmContext(CudaStream& cuda)
    : cuda_(cuda), lt_(cublaslt()), tunes_(times_algorithms()), cache_(prefix_of(cuda, lt_)) {
  tf32_ = is_on("LLAMAFORGE_TF32");
  fills_ = is_on("LLAMAFORGE_CUDA_FILL_PRODUCTS");
  check_lt(lt_.Create(&handle_), "Create");
  LF_CUDA_CHECK(cudaMalloc(&workspace_, kWorkspaceBytes));
  if (fills_) LF_CUDA_CHECK(cudaMemsetAsync(workspace_, 0, kWorkspaceBytes, cuda_.compute()));
  LF_CUDA_CHECK(cudaEventCreate(&begin_));
  LF_CUDA_CHECK(cudaEventCreate(&end_));
}

GemmContext::~GemmContext() {
  for (auto& [key, plan] : plans_) destroy(plan);
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
  cudaFree(workspace_);
  lt_.Destroy(handle_);
}

void GemmContext::destroy(Plan& plan) const {
  if (plan.desc) lt_.MatmulDescDestroy(plan.desc);
  for (lt::MatrixLayout layout : {plan.a, plan.b, plan.c}) {
    if (layout) lt_.MatrixLayoutDestroy(layout);
  }
  plan = {};
}

// ---- plans --------------------------------------------------------------------------------------

void GemmContext::set_scales(const Plan& plan, const Fp8Operands& fp8) const {
  // Our b is cuBLASLt's first operand.
  const auto set = [&](int attribute, const float* scale) {
    check_lt(lt_.MatmulDescSetAttribute(plan.desc, attribute, &scale, sizeof scale),
             "MatmulDescSetAttribute");
  };
  set(lt::kDescScaleA, fp8.b_scale);
  set(lt::kDescScaleB, fp8.a_scale);
}

GemmContext::Plan GemmContext::describe(const GemmShape& shape, const GemmOperand& a,
                                        const GemmOperand& b, const Fp8Operands* fp8) const {
  Plan plan;
  const int compute =
      shape.input == DType::f32 && tf32_ ? lt::kCompute32FFastTF32 : lt::kCompute32F;
  check_lt(lt_.MatmulDescCreate(&plan.desc, compute, CUDA_R_32F), "MatmulDescCreate");
  auto set_operation = [&](int attribute, bool transposed) {
    const int operation = transposed ? lt::kOperationT : lt::kOperationN;
    check_lt(lt_.MatmulDescSetAttribute(plan.desc, attribute, &operation, sizeof operation),
             "MatmulDescSetAttribute");
  };
  set_operation(lt::kDescTransA, b.transposed);
  set_operation(lt::kDescTransB, a.transposed);
  if (fp8) {
    set_scales(plan, *fp8);
    const int8_t fast = fp8->fast;
    check_lt(lt_.MatmulDescSetAttribute(plan.desc, lt::kDescFastAccumulation, &fast, sizeof fast),
             "MatmulDescSetAttribute");
  }

  // A row-major (rows, columns) matrix is a column-major (columns, rows) one.
  auto layout = [&](lt::MatrixLayout& result, DType dtype, int64_t rows, int64_t columns,
                    bool shared) {
    check_lt(lt_.MatrixLayoutCreate(&result, to_cuda(dtype), static_cast<uint64_t>(columns),
                                    static_cast<uint64_t>(rows), columns),
             "MatrixLayoutCreate");
    if (shape.batch == 1) return;
    const int32_t count = static_cast<int32_t>(shape.batch);
    const int64_t stride = shared ? 0 : rows * columns;
    check_lt(lt_.MatrixLayoutSetAttribute(result, lt::kLayoutBatchCount, &count, sizeof count),
             "MatrixLayoutSetAttribute");
    check_lt(lt_.MatrixLayoutSetAttribute(result, lt::kLayoutBatchStride, &stride, sizeof stride),
             "MatrixLayoutSetAttribute");
  };
  layout(plan.a, shape.input, a.transposed ? shape.k : shape.m, a.transposed ? shape.m : shape.k,
         a.shared);
  layout(plan.b, fp8 ? fp8->b : shape.input, b.transposed ? shape.n : shape.k,
         b.transposed ? shape.k : shape.n, b.shared);
  layout(plan.c, shape.output, shape.m, shape.n, false);
  return plan;
}

std::vector<lt::Algorithm> GemmContext::heuristics(const Plan& plan, const Key& key,
                                                   int count) const {
  lt::MatmulPreference preference = nullptr;
  check_lt(lt_.MatmulPreferenceCreate(&preference), "MatmulPreferenceCreate");
  auto set = [&](int attribute, const auto& value) {
    check_lt(lt_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
             "MatmulPreferenceSetAttribute");
  };
  set(lt::kPreferenceWorkspaceBytes, kWorkspaceBytes);
  set(lt::kPreferenceReductionSchemes, key[14] ? lt::kReductionNone : lt::kReductionComputeType);
  set(lt::kPreferenceAlignmentA, static_cast<uint32_t>(key[12]));
  set(lt::kPreferenceAlignmentB, static_cast<uint32_t>(key[11]));
  set(lt::kPreferenceAlignmentC, static_cast<uint32_t>(key[13]));
  set(lt::kPreferenceAlignmentD, static_cast<uint32_t>(key[13]));
  std::vector<lt::HeuristicResult> results(static_cast<size_t>(count));
  int found = 0;
  const lt::Status status =
      lt_.MatmulAlgoGetHeuristic(handle_, plan.desc, plan.b, plan.a, plan.c, plan.c, preference,
                                 count, results.data(), &found);
  lt_.MatmulPreferenceDestroy(preference);
  std::vector<lt::Algorithm> algorithms;
  if (status != 0) return algorithms;
  results.resize(static_cast<size_t>(found));
  for (const lt::HeuristicResult& result : results) {
    if (result.state == 0 && result.workspace_bytes <= kWorkspaceBytes)
      algorithms.push_back(result.algorithm);
  }
  return algorithms;
}

// The first offer for many rows that the plan's own number of rows can take.
std::optional<lt::Algorithm> GemmContext::one_for_all_rows(const Plan& plan, const Key& key,
                                                           GemmShape shape, const GemmOperand& a,
                                                           const GemmOperand& b) const {
  shape.m = kManyRows;
  Plan many = describe(shape, a, b, nullptr);
  const auto algorithms = heuristics(many, key, kCandidates);
  destroy(many);
  for (const lt::Algorithm& algorithm : algorithms) {
    lt::HeuristicResult checked;
    if (lt_.MatmulAlgoCheck(handle_, plan.desc, plan.b, plan.a, plan.c, plan.c, &algorithm,
                            &checked) == 0 &&
        checked.workspace_bytes <= kWorkspaceBytes) {
      return algorithm;
    }
  }
  return std::nullopt;
}

GemmContext::Plan& GemmContext::plan_for(const GemmShape& shape, const GemmOperand& a,
                                         const GemmOperand& b, void* c, bool accumulate,
                                         const Fp8Operands* fp8) {
  const Key key = {shape.batch,
                   shape.m,
                   shape.n,
                   shape.k,
                   dtypes_of(shape, fp8),
                   a.transposed,
                   b.transposed,
                   a.shared,
                   b.shared,
                   accumulate,
                   tf32_,
                   alignment_of(a.data),
                   alignment_of(b.data),
                   alignment_of(c),
                   shape.independent_rows};
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  if (plans_.size() >= kMaximalPlans) {
    for (auto& [old, plan] : plans_) destroy(plan);
    plans_.clear();
  }
  Plan plan = describe(shape, a, b, fp8);
  try {
    const std::string name = name_of_product(key);
    const auto known = shape.independent_rows ? one_for_all_rows(plan, key, shape, a, b)
                       : tunes_               ? cache_.find(name)
                                              : std::nullopt;
    lt::HeuristicResult checked;
    if (known &&
        lt_.MatmulAlgoCheck(handle_, plan.desc, plan.b, plan.a, plan.c, plan.c, &*known,
                            &checked) == 0 &&
        checked.workspace_bytes <= kWorkspaceBytes) {
      plan.algorithm = *known;
    } else {
      const auto algorithms = heuristics(plan, key, kCandidates);
      if (algorithms.empty()) {
        throw Error("ERR_NATIVE",
                    format("cuBLASLt has no algorithm for ({},{})·({},{}), batch {}, {} to {}",
                           shape.m, shape.k, shape.k, shape.n, shape.batch, name_of(shape.input),
                           name_of(shape.output)));
      }
      const bool times = tunes_ && !shape.independent_rows && !cuda_.capturing();
      if (times && algorithms.size() > 1 && is_worth_timing(shape)) {
        // Timing a sum into c would change c, so the timed sums go into separate memory; without
        // such memory, nothing is timed.
        void* target = c;
        const size_t bytes =
            static_cast<size_t>(shape.batch * shape.m * shape.n) * size_of(shape.output);
        if (accumulate && cudaMalloc(&target, bytes) != cudaSuccess) {
          cudaGetLastError();
          target = nullptr;
        }
        plan.algorithm = target ? fastest(plan, algorithms, a, b, target, accumulate,
                                          reaches_power_limit(shape, accumulate))
                                : algorithms[0];
        if (target) plan.algorithm = cache_.add(name, plan.algorithm);
        if (target && accumulate) LF_CUDA_CHECK(cudaFree(target));
      } else {
        plan.algorithm = algorithms[0];
      }
    }
  } catch (...) {
    destroy(plan);
    throw;
  }
  return plans_.emplace(key, plan).first->second;
}

// ---- timing -------------------------------------------------------------------------------------

lt::Status GemmContext::run(const Plan& plan, const lt::Algorithm& algorithm, const void* a,
                            const void* b, void* c, bool accumulate) {
  const float alpha = 1, beta = accumulate ? 1 : 0;
  return lt_.Matmul(handle_, plan.desc, &alpha, b, plan.b, a, plan.a, &beta, c, plan.c, c, plan.c,
                    &algorithm, workspace_, kWorkspaceBytes, cuda_.compute());
}

float GemmContext::time(Plan& plan, const lt::Algorithm& algorithm, const void* a, const void* b,
                        void* c, bool accumulate, int times) {
  constexpr float kFailed = std::numeric_limits<float>::infinity();
  LF_CUDA_CHECK(cudaEventRecord(begin_, cuda_.compute()));
  for (int i = 0; i < times; ++i) {
    if (run(plan, algorithm, a, b, c, accumulate) != 0) return kFailed;
  }
  LF_CUDA_CHECK(cudaEventRecord(end_, cuda_.compute()));
  LF_CUDA_CHECK(cudaEventSynchronize(end_));
  float milliseconds = 0;
  LF_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
  return milliseconds / static_cast<float>(times);
}

lt::Algorithm GemmContext::fastest(Plan& plan, const std::vector<lt::Algorithm>& algorithms,
                                   const GemmOperand& a, const GemmOperand& b, void* c,
                                   bool accumulate, bool at_power_limit) {
  std::vector<float> times;
  for (const lt::Algorithm& algorithm : algorithms) {
    const auto run_times = [&](int repeats) {
      return time(plan, algorithm, a.data, b.data, c, accumulate, repeats);
    };
    run_times(1);  // loads its code
    const float once = run_times(1);
    const int repeats = static_cast<int>(std::clamp(kMillisecondsPerCandidate / once, 0.0f, 50.0f));
    times.push_back(repeats > 1 ? run_times(repeats) : once);
  }
  const float best = *std::min_element(times.begin(), times.end());
  if (std::isinf(best)) throw Error("ERR_NATIVE", "none of cuBLASLt's algorithms runs");
  if (at_power_limit) return fastest_at_power_limit(plan, algorithms, times, a, b, c, accumulate);
  const auto chosen =
      std::find_if(times.begin(), times.end(), [&](float t) { return t <= best * kSameSpeed; });
  return algorithms[static_cast<size_t>(chosen - times.begin())];
}

lt::Algorithm GemmContext::fastest_at_power_limit(Plan& plan,
                                                  const std::vector<lt::Algorithm>& algorithms,
                                                  const std::vector<float>& times,
                                                  const GemmOperand& a, const GemmOperand& b,
                                                  void* c, bool accumulate) {
  std::vector<size_t> order(times.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t x, size_t y) { return times[x] < times[y]; });
  size_t chosen = order[0];
  float least = std::numeric_limits<float>::infinity();
  for (const size_t i : order) {
    if (times[i] > times[order[0]] * kFinalist) break;
    const auto run_for = [&](float milliseconds) {
      const int repeats = std::max(1, static_cast<int>(milliseconds / times[i]));
      return time(plan, algorithms[i], a.data, b.data, c, accumulate, repeats);
    };
    run_for(kMillisecondsToSettle);
    const float own = run_for(kMillisecondsAtPowerLimit);
    if (own * kSameSpeed < least) {
      least = own;
      chosen = i;
    }
  }
  return algorithms[chosen];
}

void GemmContext::multiply(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
                           void* c, bool accumulate, const Fp8Operands* fp8) {
  const Plan& plan = plan_for(shape, a, b, c, accumulate, fp8);
  if (fp8) set_scales(plan, *fp8);
  // Serves initcheck, which does not see the writes of cuBLASLt's kernels through TMA and would
  // report every reader of them.
  if (fills_ && !accumulate) {
    const size_t bytes =
        static_cast<size_t>(shape.batch * shape.m * shape.n) * size_of(shape.output);
    LF_CUDA_CHECK(cudaMemsetAsync(c, 0, bytes, cuda_.compute()));
  }
  check_lt(run(plan, plan.algorithm, a.data, b.data, c, accumulate), "Matmul");
}

void multiply_matrices(CudaStream& cuda, const GemmShape& shape, const GemmOperand& a,
                       const GemmOperand& b, void* c, bool accumulate) {
  if (!shape.independent_rows) {
    if (multiply_few_rows(cuda, shape, a, b, c, accumulate)) return;
    if (multiply_vector(cuda, shape, a, b, c, accumulate)) return;
  }
  cuda.gemm().multiply(shape, a, b, c, accumulate);
}

// ---- the ops ------------------------------------------------------------------------------------

namespace {

void checked_gemm(Stream& stream, const Tensor& a, const Tensor& b, const Tensor& c,
                  bool transpose_a, bool transpose_b, bool accumulate, bool independent_rows) {
  const GemmSize size = check_gemm(a, b, c, transpose_a, transpose_b);
  LF_CHECK(size.batch <= INT32_MAX, "a batch of {} products is too large", size.batch);
  multiply_matrices(on_cuda(stream),
                    {size.batch, size.m, size.n, size.k, a.dtype, c.dtype, independent_rows},
                    {a.raw(), transpose_a, size.a_shared}, {b.raw(), transpose_b, size.b_shared},
                    c.raw(), accumulate);
}

void checked_fp8_gemm(Stream& stream, const Tensor& a, const Tensor& a_scale, const Tensor& b,
                      const Tensor& b_scale, const Tensor& c, bool fast, bool accumulate) {
  const Fp8GemmSize size = check_fp8_gemm(a, a_scale, b, b_scale, c);
  CudaStream& cuda = on_cuda(stream);
  check_fp8_device(cuda);
  LF_CHECK(aligned16({a.raw(), b.raw(), c.raw()}),
           "expected tensors that start at multiples of 16 bytes");
  const Fp8Operands fp8 = {b.dtype, a_scale.data<float>(), b_scale.data<float>(), fast};
  cuda.gemm().multiply({1, size.m, size.n, size.k, a.dtype, c.dtype}, {a.raw(), false},
                       {b.raw(), true}, c.raw(), accumulate, &fp8);
}

}  // namespace

void fp8_gemm(Stream& stream, In a, In a_scale, In b, In b_scale, Out c, bool fast) {
  checked_fp8_gemm(stream, a, a_scale, b, b_scale, c, fast, false);
}

void fp8_gemm_accumulate(Stream& stream, In a, In a_scale, In b, In b_scale, InOut c, bool fast) {
  checked_fp8_gemm(stream, a, a_scale, b, b_scale, c, fast, true);
}

void gemm(Stream& stream, In a, In b, Out c, bool transpose_a, bool transpose_b,
          bool independent_rows) {
  checked_gemm(stream, a, b, c, transpose_a, transpose_b, false, independent_rows);
}

void gemm_accumulate(Stream& stream, In a, In b, InOut c, bool transpose_a, bool transpose_b,
                     bool independent_rows) {
  checked_gemm(stream, a, b, c, transpose_a, transpose_b, true, independent_rows);
}

}  // namespace llamaforge::cuda

// A stream's state for its matrix products: cuBLASLt's handle and workspace, and a plan for each
// kind of product.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cuda/gemm/cublaslt.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/gemm_cache.h"

namespace llamaforge::cuda {

class GemmContext {
 public:
  explicit GemmContext(CudaStream& cuda);
  ~GemmContext();
  GemmContext(const GemmContext&) = delete;
  GemmContext& operator=(const GemmContext&) = delete;

  void multiply(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, void* c,
                bool accumulate, const Fp8Operands* fp8 = nullptr);

 private:
  // Everything that the choice of an algorithm may depend on.
  using Key = std::array<int64_t, 15>;
  struct Plan {
    lt::MatmulDesc desc = nullptr;
    lt::MatrixLayout a = nullptr, b = nullptr, c = nullptr;
    lt::Algorithm algorithm = {};
  };

  Plan& plan_for(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, void* c,
                 bool accumulate, const Fp8Operands* fp8);
  Plan describe(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
                const Fp8Operands* fp8) const;
  void set_scales(const Plan& plan, const Fp8Operands& fp8) const;
  std::vector<lt::Algorithm> heuristics(const Plan& plan, const Key& key, int count) const;
  std::optional<lt::Algorithm> one_for_all_rows(const Plan& plan, const Key& key, GemmShape shape,
                                                const GemmOperand& a, const GemmOperand& b) const;
  // at_power_limit: whether the choice is made at the clock that the power limit leaves.
  lt::Algorithm fastest(Plan& plan, const std::vector<lt::Algorithm>& algorithms,
                        const GemmOperand& a, const GemmOperand& b, void* c, bool accumulate,
                        bool at_power_limit);
  // times: milliseconds of each algorithm at full clock.
  lt::Algorithm fastest_at_power_limit(Plan& plan, const std::vector<lt::Algorithm>& algorithms,
                                       const std::vector<float>& times, const GemmOperand& a,
                                       const GemmOperand& b, void* c, bool accumulate);
  // Runs the plan's product `times` times with this algorithm and returns milliseconds for one;
  // infinity if it fails.
  float time(Plan& plan, const lt::Algorithm& algorithm, const void* a, const void* b, void* c,
             bool accumulate, int times);
  lt::Status run(const Plan& plan, const lt::Algorithm& algorithm, const void* a, const void* b,
                 void* c, bool accumulate);
  void destroy(Plan& plan) const;

  CudaStream& cuda_;
  const CublasLt& lt_;
  lt::Handle handle_ = nullptr;
  void* workspace_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  bool tf32_ = false, tunes_ = true, fills_ = false;
  GemmCache cache_;
  std::map<Key, Plan> plans_;
};

}  // namespace llamaforge::cuda

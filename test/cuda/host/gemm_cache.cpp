// Writes one choice. Prints whether a second cache of the same process finds it: "found" or "none".
#include "cuda/gemm/gemm_cache.h"

#include <cstdio>

int main() {
  using llamaforge::cuda::GemmCache;
  GemmCache("test: ").add("product", {{1, 2, 3, 4, 5, 6, 7, 8}});
  std::puts(GemmCache("test: ").find("product") ? "found" : "none");
}

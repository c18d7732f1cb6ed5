// Algorithms chosen by timing, kept on disk: two runs on one machine use the same ones and so give the same bits.
//
// A text file, one choice a line: cuBLASLt's version, the device, the product, a tab, the algorithm in hexadecimal. Of
// several lines for one product the first counts, so runs that measure at the same time agree afterwards.
// LLAMAFORGE_GEMM_CACHE names the file, or is "none"; the default is llamaforge/gemm.txt in the user's cache folder.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "cuda/gemm/cublaslt.h"

namespace llamaforge::cuda {

class GemmCache {
 public:
  // prefix: what the choices depend on beside the product.
  explicit GemmCache(std::string prefix);

  std::optional<lt::Algorithm> find(const std::string& product) const;
  // What counts from now on: this choice, or that of a process which measured the same product at the same time and was
  // first; so the ranks of a run use the same one from the start, and after a restart. A file that cannot be written is
  // no error: the choice is then made again next time.
  lt::Algorithm add(const std::string& product, const lt::Algorithm& algorithm);

 private:
  void read();
  void write(const std::string& product, const lt::Algorithm& algorithm) const;

  const std::string prefix_, path_;
  std::map<std::string, lt::Algorithm> choices_;
};

}  // namespace llamaforge::cuda

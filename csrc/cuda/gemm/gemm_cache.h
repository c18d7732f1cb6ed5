// Algorithms chosen by timing are kept on disk, so that two runs on one machine use the same ones
// and give the same bits.
//
// The cache is a text file with one choice per line: cuBLASLt's version, the device, the product, a
// tab, the algorithm in hexadecimal. If several lines have the same product, the first counts, so
// runs that measure at the same time agree afterwards. LLAMAFORGE_GEMM_CACHE names the file, or is
// "none"; the default is llamaforge/gemm.txt in the user's cache folder.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "cuda/gemm/cublaslt.h"

namespace llamaforge::cuda {

class GemmCache {
 public:
  // prefix: everything but the product that the choices depend on.
  explicit GemmCache(std::string prefix);

  std::optional<lt::Algorithm> find(const std::string& product) const;
  // Returns the choice that counts from now on: this one, or that of a process which measured the
  // same product at the same time and was first. So the ranks of a run use the same algorithm from
  // the start, and after a restart. A file that cannot be written is no error: the choice is then
  // made again next time.
  lt::Algorithm add(const std::string& product, const lt::Algorithm& algorithm);

 private:
  void read();
  void write(const std::string& product, const lt::Algorithm& algorithm) const;

  const std::string prefix_, path_;
  std::map<std::string, lt::Algorithm> choices_;
};

}  // namespace llamaforge::cuda

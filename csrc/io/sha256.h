// SHA-256 (FIPS 180-4), incremental. It is native instead of JavaScript's crypto because a
// checkpoint is hashed while it is written, on the writing thread, so the event loop never waits
// for 15 GB of hashing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace llamaforge::io {

class Sha256 {
 public:
  void update(const void* data, size_t bytes);
  /// Returns the digest in lower-case hexadecimal. The object must not be used afterwards.
  std::string finish();

  /// Whether the processor's SHA instructions are used (about 6 times the portable code).
  static bool accelerated();

 private:
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  unsigned char block_[64];
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

}  // namespace llamaforge::io

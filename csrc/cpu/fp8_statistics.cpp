// Figures of a tensor in 8 bits (see ops.def): a count of each of its 256 codes says everything.
#include <array>

#include "cpu/fp8.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void fp8_statistics(Stream& stream, In bits, In scale, Out figures) {
  check_fp8_statistics(bits, scale, figures);
  using Counts = std::array<int64_t, 256>;
  const int64_t n = bits.numel(), chunks = (n + kChunk - 1) / kChunk;
  const Scratch scratch(stream, static_cast<size_t>(chunks) * sizeof(Counts));
  auto* of_chunk = scratch.as<Counts>();
  const auto* codes = static_cast<const uint8_t*>(bits.raw());
  parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) {
    Counts& counts = of_chunk[begin / kChunk];
    counts = {};
    for (int64_t i = begin; i < end; ++i) ++counts[codes[i]];
  });
  with_fp8(bits.dtype, [&]<class T>() {
    int64_t zeros = 0, largest = 0, not_finite = 0;
    float maximum = 0;
    for (int code = 0; code < 256; ++code) {
      int64_t count = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        count += of_chunk[chunk][static_cast<size_t>(code)];
      if (count == 0) continue;
      const int size = code & 0x7f;
      if (size > Fp8Format<T>::kLargestBits) {
        not_finite += count;
        continue;
      }
      if (size == 0) zeros += count;
      if (size == Fp8Format<T>::kLargestBits) largest += count;
      maximum = std::max(maximum, std::abs(fp8_to_float(T{static_cast<uint8_t>(code)})));
    }
    float* to = figures.data<float>();
    to[0] = maximum * *scale.data<float>();
    const std::array<int64_t, 3> counts = {zeros, largest, not_finite};
    for (size_t i = 0; i < counts.size(); ++i) {
      to[i + 1] = static_cast<float>(static_cast<double>(counts[i]) / static_cast<double>(n));
    }
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

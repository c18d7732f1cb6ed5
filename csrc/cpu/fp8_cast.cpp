// Tensors in fp8: the largest number, and the cast (see ops.def).
#include "cpu/fp8.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void fp8_maximum(Stream& stream, In x, Out maximum) {
  check_fp8_maximum(x, maximum);
  const bfloat16* from = x.data<bfloat16>();
  const int64_t n = x.numel(), chunks = (n + kChunk - 1) / kChunk;
  // Without their sign, the bits of larger numbers are larger, and those of NaN the largest.
  const Scratch scratch(stream, static_cast<size_t>(chunks) * sizeof(uint32_t));
  auto* largest = scratch.as<uint32_t>();
  parallel_chunks(n, kChunk, 1, [&](int64_t begin, int64_t end) {
    uint32_t bits = 0;
    for (int64_t i = begin; i < end; ++i) bits = std::max<uint32_t>(bits, from[i].bits & 0x7fffu);
    largest[begin / kChunk] = bits;
  });
  const uint32_t bits = *std::max_element(largest, largest + chunks);
  *maximum.data<float>() = to_float(bfloat16{static_cast<uint16_t>(bits)});
}

void fp8_cast(Stream& stream, In x, In maximum, std::optional<Out> rows, std::optional<Out> columns,
              Out scale) {
  const Fp8Size size = check_fp8_cast(x, maximum, rows, columns, scale);
  const bfloat16* from = x.data<bfloat16>();
  cast_rows(stream, size, *maximum.data<float>(), rows, columns, scale, [&](int64_t row, float* y) {
    for (int64_t i = 0; i < size.columns; ++i) y[i] = to_float(from[row * size.columns + i]);
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

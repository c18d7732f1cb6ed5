// Writing fp8 tensors: rows (N,D) and columns (D,N'), see ops.def.
#pragma once

#include <cstring>

#include "cpu/kernel.h"
#include "ops/checks/fp8.h"
#include "runtime/fp8.h"
#include "runtime/stream.h"

namespace llamaforge::LF_CPU_NAMESPACE {

// Calls body.operator()<T>() with the format's element type.
template <class Body>
void with_fp8(DType format, const Body& body) {
  format == DType::f8e4m3 ? body.template operator()<float8_e4m3>()
                          : body.template operator()<float8_e5m2>();
}

constexpr int largest_exponent(DType format) {
  return format == DType::f8e4m3 ? kLargestExponentE4M3 : kLargestExponentE5M2;
}

// Writes the transpose (D,N') of rows (N,D), with zeros at the ends of its rows.
static inline void write_columns(const uint8_t* rows, uint8_t* columns, const Fp8Size& size) {
  constexpr int64_t kBlock = 64;
  parallel_chunks(size.columns, kBlock, size.padded, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < size.padded; first += kBlock) {
      const int64_t last = std::min(first + kBlock, size.padded);
      for (int64_t column = begin; column < end; ++column) {
        for (int64_t row = first; row < last; ++row) {
          columns[column * size.padded + row] =
              row < size.rows ? rows[row * size.columns + column] : 0;
        }
      }
    }
  });
}

// Casts numbers that are made a row at a time: make(row, y) writes a row's D floats to y. Sets the
// scale that belongs to the bound.
template <class Make>
void cast_rows(Stream& stream, const Fp8Size& size, float bound, const std::optional<Out>& rows,
               const std::optional<Out>& columns, const Tensor& scale, const Make& make) {
  const float multiplier = fp8_multiplier(bound, largest_exponent(size.format));
  *scale.data<float>() = 1.0f / multiplier;
  const auto count = static_cast<size_t>(size.rows * size.columns);
  const Scratch made(stream, count * sizeof(float)), kept(stream, rows ? 0 : count);
  uint8_t* to = rows ? static_cast<uint8_t*>(rows->raw()) : kept.as<uint8_t>();
  with_fp8(size.format, [&]<class T>() {
    parallel_rows(size.rows, size.columns, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* y = made.as<float>() + row * size.columns;
        make(row, y);
        for (int64_t i = 0; i < size.columns; ++i)
          to[row * size.columns + i] = to_fp8<T>(y[i] * multiplier).bits;
      }
    });
  });
  if (columns) write_columns(to, static_cast<uint8_t*>(columns->raw()), size);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// The number formats of tensors. Plain C++: no Node, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace llamaforge {

// The two formats of 8 bits serve the operands of fp8 products alone (the fp8_ ops).
enum class DType : uint8_t { f32, bf16, i32, f8e4m3, f8e5m2 };

// The upper half of a float32: 8 exponent bits, 7 mantissa bits.
struct bfloat16 {
  uint16_t bits;
};

// A sign, 4 exponent bits and 3 mantissa bits: up to 448, without infinities. For weights and
// activations.
struct float8_e4m3 {
  uint8_t bits;
};
// A sign, 5 exponent bits and 2 mantissa bits: up to 57344. For gradients.
struct float8_e5m2 {
  uint8_t bits;
};

inline float to_float(bfloat16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof result);
  return result;
}
inline float to_float(float x) { return x; }
inline float to_float(int32_t x) { return static_cast<float>(x); }

// Rounds to nearest even; a NaN stays a (quiet) NaN.
inline bfloat16 to_bfloat16(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  if ((wide & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((wide >> 16) | 0x40)};
  return {static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}

// Conversion to any tensor element, for kernels that are templates over the dtype.
template <class T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  return to_bfloat16(x);
}
template <>
inline int32_t from_float<int32_t>(float x) {
  return static_cast<int32_t>(x);
}

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bfloat16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<float8_e4m3>() {
  return DType::f8e4m3;
}
template <>
constexpr DType dtype_of<float8_e5m2>() {
  return DType::f8e5m2;
}

constexpr bool is_fp8(DType dtype) { return dtype == DType::f8e4m3 || dtype == DType::f8e5m2; }

// The compiler refuses a switch that lacks a dtype (-Werror=switch). What follows one is for
// numbers that are none.
constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return sizeof(float);
    case DType::bf16: return sizeof(bfloat16);
    case DType::i32: return sizeof(int32_t);
    case DType::f8e4m3: return sizeof(float8_e4m3);
    case DType::f8e5m2: return sizeof(float8_e5m2);
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::i32: return "i32";
    case DType::f8e4m3: return "f8e4m3";
    case DType::f8e5m2: return "f8e5m2";
  }
  return "?";
}

}  // namespace llamaforge

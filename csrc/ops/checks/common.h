// Checks of the arguments of operations. The checks in this folder are written once for the kernels
// of all devices; a check that only one device needs is in that device's kernel.
//
// Functions are static, because the CPU's kernels are compiled for several instruction sets, and
// the linker must not take one set's copy for another's.
#pragma once

#include <string>

#include "runtime/tensor.h"

namespace llamaforge {

constexpr size_t kMostAxes = 8;  // most axes of a tensor that kernels walk axis by axis

static inline void check_axes(const Shape& shape) {
  LF_CHECK(shape.size() <= kMostAxes, "at most {} axes, got {}", kMostAxes, to_string(shape));
}

[[noreturn]] static inline void throw_dtype(const char* argument, const char* expected, DType got) {
  throw Error("ERR_DTYPE", format("expected {} for {}, got {}", expected, argument, name_of(got)));
}

static inline void check_dtype(const char* argument, const Tensor& tensor, DType expected) {
  if (tensor.dtype != expected)
    throw_dtype(argument, std::string(name_of(expected)).c_str(), tensor.dtype);
}

static inline void check_float(const char* argument, const Tensor& tensor) {
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16) {
    throw_dtype(argument, "f32 or bf16", tensor.dtype);
  }
}

// Refuses the formats of 8 bits, which only the fp8_ ops take.
static inline void check_wide(const char* argument, const Tensor& tensor) {
  if (is_fp8(tensor.dtype)) throw_dtype(argument, "f32, bf16 or i32", tensor.dtype);
}

static inline void check_shape(const char* argument, const Tensor& tensor, const Shape& expected) {
  LF_CHECK(tensor.shape == expected, "expected {} of shape {}, got {}", argument,
           to_string(expected), to_string(tensor.shape));
}

// Checks that a tensor has the shape and dtype of another.
static inline void check_like(const char* argument, const Tensor& tensor, const Tensor& other) {
  check_shape(argument, tensor, other.shape);
  check_dtype(argument, tensor, other.dtype);
}

// Calls body.operator()<T>() with the element type of a floating-point tensor.
template <class Body>
static inline void with_float(const char* argument, const Tensor& tensor, const Body& body) {
  switch (tensor.dtype) {
    case DType::f32: return body.template operator()<float>();
    case DType::bf16: return body.template operator()<bfloat16>();
    case DType::i32:
    case DType::f8e4m3:
    case DType::f8e5m2: break;
  }
  throw_dtype(argument, "f32 or bf16", tensor.dtype);
}

}  // namespace llamaforge

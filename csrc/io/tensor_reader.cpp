#include "io/tensor_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "io/file_error.h"
#include "io/safetensors.h"

namespace llamaforge::io {
namespace {

// Large enough for a disk's full speed, and small enough for the second-level cache.
constexpr size_t kBlockElements = 128 * 1024;

struct Half {
  uint16_t bits;
};

float to_float(Half half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000) << 16;
  const uint32_t exponent = (half.bits >> 10) & 0x1F;
  const uint32_t mantissa = half.bits & 0x3FF;
  float magnitude;
  if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    const uint32_t wide = ((exponent == 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
    std::memcpy(&magnitude, &wide, sizeof magnitude);
  }
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  bits |= sign;
  std::memcpy(&magnitude, &bits, sizeof bits);
  return magnitude;
}

[[noreturn]] void fail_range(uint64_t index, std::string_view to) {
  throw FormatError("element " + std::to_string(index) + " does not fit into " + std::string(to));
}

template <class Source>
Source load(const void* source, size_t i) {
  Source value;
  std::memcpy(&value, static_cast<const char*>(source) + i * sizeof value, sizeof value);
  return value;
}

float narrow(double value, uint64_t index) {
  const auto narrowed = static_cast<float>(value);
  if (std::isinf(narrowed) && !std::isinf(value)) fail_range(index, "f32");
  return narrowed;
}
float narrow(float value, uint64_t) { return value; }
float narrow(bfloat16 value, uint64_t) { return llamaforge::to_float(value); }
float narrow(Half value, uint64_t) { return to_float(value); }

template <class Source>
void convert_floats(const void* source, DType to, void* target, size_t count, uint64_t first) {
  if (to == DType::f32) {
    auto* out = static_cast<float*>(target);
    for (size_t i = 0; i < count; ++i) out[i] = narrow(load<Source>(source, i), first + i);
    return;
  }
  auto* out = static_cast<bfloat16*>(target);
  for (size_t i = 0; i < count; ++i) {
    const float value = narrow(load<Source>(source, i), first + i);
    out[i] = to_bfloat16(value);
    if ((out[i].bits & 0x7FFF) == 0x7F80 && !std::isinf(value)) fail_range(first + i, "bf16");
  }
}

void convert_int64(const void* source, void* target, size_t count, uint64_t first) {
  auto* out = static_cast<int32_t*>(target);
  for (size_t i = 0; i < count; ++i) {
    const auto value = load<int64_t>(source, i);
    if (value < std::numeric_limits<int32_t>::min() ||
        value > std::numeric_limits<int32_t>::max()) {
      fail_range(first + i, "i32");
    }
    out[i] = static_cast<int32_t>(value);
  }
}

// Whether any element has an exponent of all ones, as inf and NaN have, or, if requested, is below
// -0. There is no branch, so that the compiler vectorises the loop: the block was just written and
// is in the cache.
template <class Bits, Bits kExponent, Bits kSign>
bool any_bad(const void* data, size_t count, bool not_negative) {
  const auto* bits = static_cast<const Bits*>(data);
  const Bits sign = not_negative ? kSign : 0;
  Bits bad = 0;
  for (size_t i = 0; i < count; ++i) {
    const Bits magnitude = bits[i] & static_cast<Bits>(~kSign);
    bad |= static_cast<Bits>((bits[i] & kExponent) == kExponent);
    bad |= static_cast<Bits>((bits[i] & sign) != 0) & static_cast<Bits>(magnitude != 0);
  }
  return bad != 0;
}

}  // namespace

void check_elements(Values values, DType dtype, const void* data, size_t count, uint64_t first) {
  if (values == Values::any || dtype == DType::i32) return;
  const bool not_negative = values == Values::finite_and_not_negative;
  const bool bad = dtype == DType::f32
                       ? any_bad<uint32_t, 0x7F800000u, 0x80000000u>(data, count, not_negative)
                       : any_bad<uint16_t, 0x7F80, 0x8000>(data, count, not_negative);
  if (!bad) return;
  for (size_t i = 0; i < count; ++i) {
    const float value =
        dtype == DType::f32 ? load<float>(data, i) : narrow(load<bfloat16>(data, i), i);
    if (std::isfinite(value) && !(not_negative && value < 0)) continue;
    throw FormatError(format("element {} is {}, expected a finite number{}", first + i, value,
                             not_negative ? " that is not negative" : ""));
  }
}

bool is_convertible(std::string_view file_dtype, DType to) {
  if (is_fp8(to)) return false;
  if (to == DType::i32) return file_dtype == "I32" || file_dtype == "I64";
  return file_dtype == "F32" || file_dtype == "BF16" || file_dtype == "F16" || file_dtype == "F64";
}

void convert_elements(std::string_view file_dtype, const void* source, DType to, void* target,
                      size_t count, uint64_t first) {
  if (!is_convertible(file_dtype, to)) {
    throw FormatError(format("a tensor of {} cannot be read as {}", file_dtype, name_of(to)));
  }
  if ((file_dtype == "F32" && to == DType::f32) || (file_dtype == "BF16" && to == DType::bf16) ||
      file_dtype == "I32") {
    std::memcpy(target, source, count * size_of(to));
  } else if (file_dtype == "F32") {
    convert_floats<float>(source, to, target, count, first);
  } else if (file_dtype == "BF16") {
    convert_floats<bfloat16>(source, to, target, count, first);
  } else if (file_dtype == "F16") {
    convert_floats<Half>(source, to, target, count, first);
  } else if (file_dtype == "F64") {
    convert_floats<double>(source, to, target, count, first);
  } else {
    convert_int64(source, target, count, first);
  }
}

void read_tensor(Stream& stream, const RegularFile& file, uint64_t offset,
                 std::string_view file_dtype, const Tensor& out, Values values,
                 std::string_view name) {
  const FileDtype* dtype = find_file_dtype(file_dtype);
  if (dtype == nullptr || !is_convertible(file_dtype, out.dtype)) {
    throw FormatError(file.path() + ": a tensor of " + std::string(file_dtype) +
                      " cannot be read as " + std::string(name_of(out.dtype)));
  }
  const auto count = static_cast<size_t>(out.numel());
  const size_t block = std::min(count, kBlockElements);
  std::vector<char> source(block * dtype->bytes);
  std::vector<char> converted(block * size_of(out.dtype));
  for (size_t done = 0; done < count; done += block) {
    const size_t now = std::min(block, count - done);
    file.read(offset + done * dtype->bytes, source.data(), now * dtype->bytes);
    try {
      convert_elements(file_dtype, source.data(), out.dtype, converted.data(), now, done);
      check_elements(values, out.dtype, converted.data(), now, done);
    } catch (const FormatError& error) {
      const std::string tensor = name.empty() ? "" : ": tensor " + std::string(name);
      throw FormatError(file.path() + tensor + ": " + error.what());
    }
    stream.copy_from_host(static_cast<char*>(out.raw()) + done * size_of(out.dtype),
                          converted.data(), now * size_of(out.dtype));
  }
  file.check_unchanged();
}

}  // namespace llamaforge::io

// Reads from a safetensors file into a tensor: pread in blocks, convert, copy to the device.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/regular_file.h"
#include "runtime/dtype.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace llamaforge::io {

/// Whether a tensor of `to` can be read from a file dtype: F64, F32, F16, BF16 into f32 and bf16;
/// I64 and I32 into i32.
bool is_convertible(std::string_view file_dtype, DType to);

/// Converts `count` elements. Rounds to nearest even. A value that the target cannot hold (an I64
/// beyond 32 bits, a finite number that would become infinite) is an error; it does not wrap.
/// @param first index of source[0] in its tensor, for messages
/// @throws FormatError
void convert_elements(std::string_view file_dtype, const void* source, DType to, void* target,
                      size_t count, uint64_t first = 0);

/// The values that a tensor may have; integers may have any value.
enum class Values { any, finite, finite_and_not_negative };

/// Refuses elements that are not among `values`, naming the first one.
/// @param first index of data[0] in its tensor, for messages
/// @throws FormatError
void check_elements(Values values, DType dtype, const void* data, size_t count, uint64_t first = 0);

/// Reads the `file_dtype` elements at `offset` of the file (absolute) into the whole of `out`,
/// whose memory must be allocated. Runs in the stream's order.
/// @param name of the tensor in the file, for messages
/// @throws FormatError, SystemError
void read_tensor(Stream& stream, const RegularFile& file, uint64_t offset,
                 std::string_view file_dtype, const Tensor& out, Values values = Values::any,
                 std::string_view name = {});

}  // namespace llamaforge::io

// The safetensors container: 8 bytes of header length, a JSON header, tensor data. The header's
// tokens come from nlohmann::json's parser as they are read, not as a tree, which would forgive
// what must not be forgiven in a file from elsewhere: the last of two equal keys wins,
// 9007199254740993 becomes ...992, 1e3 passes as an offset, and a deep or huge header costs
// seconds. Here two levels are the deepest, nothing is allocated by a length that has not been
// seen, and the first fault ends the parse with the byte it is at.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/file_error.h"
#include "io/regular_file.h"

namespace llamaforge::io {

struct FileDtype {
  std::string_view name;  // as in the file, e.g. "BF16"
  uint32_t bytes;         // of one element
};

/// The dtype called `name`, or nullptr.
const FileDtype* find_file_dtype(std::string_view name);

struct TensorEntry {
  std::string name;
  const FileDtype* dtype = nullptr;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in bytes, from the start of the file's data
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  // in the order of the header
  std::vector<std::pair<std::string, std::string>> metadata;
  uint64_t data_offset = 0;  // where the data starts in the file
  std::string identity;      // RegularFile::identity of the file that was parsed
};

/// Limits on the cost of a header. Real models are far below them: 1.1B parameters are 201 tensors
/// in 24 KB.
struct SafetensorsLimits {
  uint64_t header_bytes = 100'000'000;
  size_t entries = 100'000;  // tensors, and separately keys of __metadata__
  size_t rank = 32;
  size_t name_bytes = 4096;
  size_t metadata_bytes = 4 << 20;
};

/// Parses the JSON of a header that is followed by `data_bytes` bytes of tensor data.
/// @throws FormatError naming the tensor or the byte
SafetensorsHeader parse_safetensors_json(std::string_view json, uint64_t data_bytes,
                                         const SafetensorsLimits& limits = {});

/// The same while the JSON is still being read: read(offset, bytes) fills that part of it, from
/// front to back.
using ReadHeader = std::function<void(size_t offset, size_t bytes)>;
SafetensorsHeader parse_safetensors_json(std::string_view json, const ReadHeader& read,
                                         uint64_t data_bytes, const SafetensorsLimits& limits = {});

/// Parses a whole file held in memory.
SafetensorsHeader parse_safetensors(std::string_view file, const SafetensorsLimits& limits = {});

/// Reads and checks the header of a file; messages start with its path.
SafetensorsHeader read_safetensors_header(const RegularFile& file,
                                          const SafetensorsLimits& limits = {});

/// Returns the bytes before the data: length, JSON in the given order, spaces up to a multiple of
/// 8. Offsets are assigned in order without gaps; `begin` and `end` of the entries are ignored. The
/// parser above accepts every header that this function returns; otherwise it throws.
std::string format_safetensors_header(
    const std::vector<TensorEntry>& entries,
    const std::vector<std::pair<std::string, std::string>>& metadata,
    const SafetensorsLimits& limits = {});

}  // namespace llamaforge::io

#include "io/safetensors.h"

#include <memory>

namespace llamaforge::io {
namespace {

// Sub-byte dtypes (F4, F6_*) are missing on purpose: their sizes are not whole bytes, no code here
// could use them, and an unknown dtype is refused by name.
constexpr std::array<FileDtype, 18> kDtypes{{
    {"F64", 8},
    {"F32", 4},
    {"F16", 2},
    {"BF16", 2},
    {"I64", 8},
    {"I32", 4},
    {"I16", 2},
    {"I8", 1},
    {"U64", 8},
    {"U32", 4},
    {"U16", 2},
    {"U8", 1},
    {"BOOL", 1},
    {"C64", 8},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
    {"F8_E4M3FNUZ", 1},
    {"F8_E5M2FNUZ", 1},
}};

uint64_t decode_length(const unsigned char* bytes) {
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | bytes[i];
  return length;
}

// Makes the checks that need only the file's size and its first 8 bytes.
void check_length(uint64_t length, uint64_t file_bytes, const SafetensorsLimits& limits) {
  if (length > limits.header_bytes) {
    throw FormatError("the header's length is given as " + std::to_string(length) +
                      " bytes, more than the limit of " + std::to_string(limits.header_bytes));
  }
  if (length > file_bytes - 8) {
    throw FormatError("the header's length is given as " + std::to_string(length) +
                      " bytes, but only " + std::to_string(file_bytes - 8) + " follow");
  }
  if (length < 2) {
    throw FormatError("the header's length is given as " + std::to_string(length) +
                      " bytes, but {} has two");
  }
}

void check_smallest(uint64_t file_bytes) {
  if (file_bytes < 8) {
    throw FormatError("a safetensors file has at least 10 bytes, this one " +
                      std::to_string(file_bytes));
  }
}

void append_json_string(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace

const FileDtype* find_file_dtype(std::string_view name) {
  for (const FileDtype& dtype : kDtypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

SafetensorsHeader parse_safetensors(std::string_view file, const SafetensorsLimits& limits) {
  check_smallest(file.size());
  uint64_t length = decode_length(reinterpret_cast<const unsigned char*>(file.data()));
  check_length(length, file.size(), limits);
  SafetensorsHeader header =
      parse_safetensors_json(file.substr(8, length), file.size() - 8 - length, limits);
  header.data_offset = 8 + length;
  return header;
}

SafetensorsHeader read_safetensors_header(const RegularFile& file,
                                          const SafetensorsLimits& limits) {
  try {
    check_smallest(file.size());
    unsigned char prefix[8];
    file.read(0, prefix, sizeof prefix);
    uint64_t length = decode_length(prefix);
    check_length(length, file.size(), limits);
    // A std::string would first zero all of this memory.
    std::unique_ptr<char[]> json(new char[length]);
    SafetensorsHeader header = parse_safetensors_json(
        std::string_view(json.get(), length),
        [&](size_t offset, size_t bytes) { file.read(8 + offset, json.get() + offset, bytes); },
        file.size() - 8 - length, limits);
    header.data_offset = 8 + length;
    header.identity = file.identity();
    return header;
  } catch (const FormatError& error) {
    std::string message = error.what();
    if (message.rfind(file.path(), 0) == 0) throw;
    throw FormatError(file.path() + ": " + message);
  }
}

std::string format_safetensors_header(
    const std::vector<TensorEntry>& entries,
    const std::vector<std::pair<std::string, std::string>>& metadata,
    const SafetensorsLimits& limits) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (size_t i = 0; i < metadata.size(); ++i) {
      if (i > 0) json += ',';
      append_json_string(json, metadata[i].first);
      json += ':';
      append_json_string(json, metadata[i].second);
    }
    json += '}';
  }
  uint64_t offset = 0;
  for (const TensorEntry& entry : entries) {
    if (entry.name == "__metadata__") {
      throw FormatError("a tensor must not be called __metadata__");
    }
    uint64_t bytes = entry.dtype->bytes;
    for (int64_t dim : entry.shape) {
      if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
        throw FormatError("tensor " + in_quotes(entry.name) + ": has a shape too large to count");
      }
    }
    if (json.size() > 1) json += ',';
    append_json_string(json, entry.name);
    json += ":{\"dtype\":\"" + std::string(entry.dtype->name) + "\",\"shape\":[";
    for (size_t i = 0; i < entry.shape.size(); ++i) {
      json += (i > 0 ? "," : "") + std::to_string(entry.shape[i]);
    }
    json += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + bytes) +
            "]}";
    if (__builtin_add_overflow(offset, bytes, &offset)) {
      throw FormatError("the tensors together are too large");
    }
  }
  json += '}';
  json.append((8 - json.size() % 8) % 8, ' ');
  if (json.size() > limits.header_bytes) {
    throw FormatError("the header would have " + std::to_string(json.size()) +
                      " bytes, more than the limit of " + std::to_string(limits.header_bytes));
  }
  // The written header must be readable, so names, duplicates and sums go through the parser's
  // checks.
  parse_safetensors_json(json, offset, limits);
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>((json.size() >> (8 * i)) & 0xFF);
  return out + json;
}

}  // namespace llamaforge::io

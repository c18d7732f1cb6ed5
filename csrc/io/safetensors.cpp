#include "io/safetensors.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>

namespace llamaforge::io {
namespace {

// Sub-byte dtypes (F4, F6_*) are missing on purpose: their sizes are not whole bytes, nothing here
// could use them, and an unknown dtype is refused by name.
constexpr std::array<FileDtype, 18> kDtypes{{
    {"F64", 8},     {"F32", 4},         {"F16", 2},         {"BF16", 2},    {"I64", 8},
    {"I32", 4},     {"I16", 2},         {"I8", 1},          {"U64", 8},     {"U32", 4},
    {"U16", 2},     {"U8", 1},          {"BOOL", 1},        {"C64", 8},     {"F8_E4M3", 1},
    {"F8_E5M2", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1},
}};

// Numbers cross into JavaScript, so they end where its integers do.
constexpr uint64_t kLargestInteger = (uint64_t{1} << 53) - 1;

constexpr size_t kReadBlock = 256 * 1024;

constexpr std::string_view kMetadataKey = "__metadata__";

// Bytes of a name that may be shown in a message: short, and without control characters.
std::string quoted(std::string_view name) {
  std::string shown;
  for (char c : name.substr(0, 200)) {
    shown += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  // Do not end in the middle of a UTF-8 sequence: the message becomes a JavaScript string.
  if (name.size() > 200) {
    while (!shown.empty() && (static_cast<unsigned char>(shown.back()) & 0xC0) == 0x80) {
      shown.pop_back();
    }
    if (!shown.empty() && static_cast<unsigned char>(shown.back()) >= 0xC0) shown.pop_back();
    shown += "...";
  }
  return "\"" + shown + "\"";
}

class Parser {
 public:
  // The whole header is in memory.
  Parser(std::string_view json, uint64_t data_bytes, const SafetensorsLimits& limits)
      : json_(json), available_(json.size()), data_bytes_(data_bytes), limits_(limits) {}

  // The header is read as the parser comes to it: one that is 100 MB long and wrong in its first
  // line costs a line. read(offset, bytes) fills that part of json.
  using Read = std::function<void(size_t offset, size_t bytes)>;
  Parser(std::string_view json, Read read, uint64_t data_bytes, const SafetensorsLimits& limits)
      : json_(json), read_(std::move(read)), data_bytes_(data_bytes), limits_(limits) {}

  SafetensorsHeader parse() {
    if (!has(1) || json_[0] != '{') fail("a header must start with '{'");
    parse_members([&](std::string&& key) {
      if (key == kMetadataKey) {
        if (has_metadata_) fail("__metadata__ is given twice");
        has_metadata_ = true;
        parse_metadata();
      } else {
        parse_entry(std::move(key));
      }
    });
    skip_space();
    if (at_ != json_.size()) fail("unexpected bytes after the header's closing brace");
    check_unique_names();
    check_layout();
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError("safetensors header, byte " + std::to_string(at_) + ": " + what);
  }
  [[noreturn]] static void fail_tensor(const TensorEntry& entry, const std::string& what) {
    throw FormatError("tensor " + quoted(entry.name) + ": " + what);
  }

  // Whether `count` more bytes follow; they are in memory then.
  bool has(size_t count) {
    if (available_ - at_ >= count) return true;
    if (json_.size() - at_ < count) return false;
    while (available_ - at_ < count) {
      const size_t bytes = std::min(kReadBlock, json_.size() - available_);
      read_(available_, bytes);
      available_ += bytes;
    }
    return true;
  }

  void skip_space() {
    while (has(1)) {
      char c = json_[at_];
      if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
      ++at_;
    }
  }

  // The next byte that is no white space; 0 at the end (a NUL byte is no token either).
  char peek() {
    skip_space();
    return has(1) ? json_[at_] : '\0';
  }

  void expect(char wanted, const char* where) {
    if (peek() != wanted) {
      fail(std::string("expected '") + wanted + "' " + where +
           (has(1) ? "" : ", but the header ends"));
    }
    ++at_;
  }

  // An object: calls member(key) with the cursor at the value.
  template <typename Member>
  void parse_members(Member&& member) {
    expect('{', "at the start of an object");
    if (peek() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      if (peek() != '"') fail("expected a key in double quotes");
      std::string key = parse_string(limits_.name_bytes);
      if (key == "__proto__") fail("\"__proto__\" is refused as a name");
      expect(':', "after a key");
      member(std::move(key));
      if (peek() == ',') {
        ++at_;
        continue;
      }
      expect('}', "or ',' after a value");
      return;
    }
  }

  void parse_metadata() {
    if (peek() != '{') fail("__metadata__ must be an object of strings");
    size_t bytes = 0;
    parse_members([&](std::string&& key) {
      if (header_.metadata.size() >= limits_.entries) {
        fail("__metadata__ has more than " + std::to_string(limits_.entries) + " keys");
      }
      if (peek() != '"') fail("the value of metadata " + quoted(key) + " must be a string");
      std::string value = parse_string(limits_.metadata_bytes);
      bytes += key.size() + value.size();
      if (bytes > limits_.metadata_bytes) {
        fail("__metadata__ is longer than " + std::to_string(limits_.metadata_bytes) + " bytes");
      }
      header_.metadata.emplace_back(std::move(key), std::move(value));
    });
  }

  void parse_entry(std::string&& name) {
    if (header_.entries.size() >= limits_.entries) {
      fail("more than " + std::to_string(limits_.entries) + " tensors");
    }
    for (char c : name) {
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a tensor's name");
    }
    TensorEntry entry;
    entry.name = std::move(name);
    bool has_shape = false;
    bool has_offsets = false;
    if (peek() != '{') fail("tensor " + quoted(entry.name) + " must be an object");
    parse_members([&](std::string&& key) {
      if (key == "dtype") {
        if (entry.dtype != nullptr) fail("tensor " + quoted(entry.name) + " has two dtypes");
        if (peek() != '"') fail("the dtype of " + quoted(entry.name) + " must be a string");
        std::string dtype = parse_string(limits_.name_bytes);
        entry.dtype = find_file_dtype(dtype);
        if (entry.dtype == nullptr) {
          fail_tensor(entry, "unknown dtype " + quoted(dtype));
        }
      } else if (key == "shape") {
        if (has_shape) fail("tensor " + quoted(entry.name) + " has two shapes");
        has_shape = true;
        parse_integers([&](uint64_t value) {
          if (entry.shape.size() >= limits_.rank) {
            fail("tensor " + quoted(entry.name) + " has more than " +
                 std::to_string(limits_.rank) + " dimensions");
          }
          entry.shape.push_back(static_cast<int64_t>(value));
        });
      } else if (key == "data_offsets") {
        if (has_offsets) fail("tensor " + quoted(entry.name) + " has two data_offsets");
        has_offsets = true;
        int count = 0;
        parse_integers([&](uint64_t value) {
          if (count == 0) entry.begin = value;
          if (count == 1) entry.end = value;
          if (++count > 2) fail("data_offsets of " + quoted(entry.name) + " must be two numbers");
        });
        if (count != 2) fail("data_offsets of " + quoted(entry.name) + " must be two numbers");
      } else {
        fail("unknown key " + quoted(key) + " in tensor " + quoted(entry.name));
      }
    });
    const char* missing = entry.dtype == nullptr ? "dtype"
                          : !has_shape           ? "shape"
                          : !has_offsets         ? "data_offsets"
                                                 : nullptr;
    if (missing != nullptr) fail_tensor(entry, std::string("has no ") + missing);
    check_entry(entry);
    header_.entries.push_back(std::move(entry));
  }

  void check_entry(const TensorEntry& entry) const {
    if (entry.begin > entry.end) {
      fail_tensor(entry, "begins at byte " + std::to_string(entry.begin) + " and ends at " +
                             std::to_string(entry.end));
    }
    if (entry.end > data_bytes_) {
      fail_tensor(entry, "ends at byte " + std::to_string(entry.end) + " of " +
                             std::to_string(data_bytes_) + " bytes of data");
    }
    // Over the non-zero dimensions, so that [2^52, 2^52, 0] is refused whatever its order.
    uint64_t elements = 1;
    bool empty = false;
    for (int64_t dim : entry.shape) {
      if (dim == 0) {
        empty = true;
      } else if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements) ||
                 elements > kLargestInteger) {
        fail_tensor(entry, "has a shape too large to count");
      }
    }
    if (empty) elements = 0;
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(elements, uint64_t{entry.dtype->bytes}, &bytes) ||
        bytes != entry.end - entry.begin) {
      fail_tensor(entry, "its shape and dtype need " + std::to_string(bytes) +
                             " bytes, its data_offsets hold " +
                             std::to_string(entry.end - entry.begin));
    }
    // Relative to the data: headers of the first years are not padded, and reads are copies anyway.
    if (entry.begin % entry.dtype->bytes != 0) {
      fail_tensor(entry, "is misaligned: " + std::string(entry.dtype->name) + " at byte " +
                             std::to_string(entry.begin));
    }
  }

  // An array of non-negative integers; value(n) for each.
  template <typename Value>
  void parse_integers(Value&& value) {
    expect('[', "at the start of a list of integers");
    if (peek() == ']') {
      ++at_;
      return;
    }
    for (;;) {
      value(parse_integer());
      if (peek() == ',') {
        ++at_;
        continue;
      }
      expect(']', "or ',' after an integer");
      return;
    }
  }

  uint64_t parse_integer() {
    char first = peek();
    if (first < '0' || first > '9') fail("expected a non-negative integer");
    uint64_t value = 0;
    size_t start = at_;
    while (has(1) && json_[at_] >= '0' && json_[at_] <= '9') {
      value = value * 10 + static_cast<uint64_t>(json_[at_] - '0');
      if (value > kLargestInteger) fail("an integer above 2^53 - 1");
      ++at_;
    }
    if (json_[start] == '0' && at_ - start > 1) fail("an integer with a leading zero");
    if (has(1) && (json_[at_] == '.' || json_[at_] == 'e' || json_[at_] == 'E')) {
      fail("expected an integer, got a fraction or an exponent");
    }
    return value;
  }

  std::string parse_string(size_t limit) {
    ++at_;  // the opening quote, which the caller has seen
    std::string out;
    for (;;) {
      if (!has(1)) fail("a string does not end");
      if (out.size() > limit) fail("a string longer than " + std::to_string(limit) + " bytes");
      auto c = static_cast<unsigned char>(json_[at_]);
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c == '\\') {
        parse_escape(out);
      } else if (c < 0x20) {
        fail("a control character in a string");
      } else if (c < 0x80) {
        append_plain(out);
      } else {
        parse_utf8(out);
      }
    }
  }

  // The run of ASCII characters at the cursor that stand for themselves, as far as it is in memory.
  void append_plain(std::string& out) {
    size_t end = at_ + 1;
    while (end < available_) {
      auto c = static_cast<unsigned char>(json_[end]);
      if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\') break;
      ++end;
    }
    out.append(json_.substr(at_, end - at_));
    at_ = end;
  }

  // One multi-byte character (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF).
  void parse_utf8(std::string& out) {
    auto byte = [&](size_t i) {
      return has(i + 1) ? static_cast<unsigned char>(json_[at_ + i]) : 0u;
    };
    unsigned lead = byte(0);
    size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                    : lead >= 0xE0 && lead <= 0xEF ? 3
                    : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                   : 0;
    if (length == 0) fail("invalid UTF-8");
    for (size_t i = 1; i < length; ++i) {
      if ((byte(i) & 0xC0) != 0x80) fail("invalid UTF-8");
    }
    if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
        (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) {
      fail("invalid UTF-8");
    }
    out.append(json_.substr(at_, length));
    at_ += length;
  }

  void parse_escape(std::string& out) {
    ++at_;
    char c = has(1) ? json_[at_] : '\0';
    if (c != '\0') ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/': out += c; return;
      case 'b': out += '\b'; return;
      case 'f': out += '\f'; return;
      case 'n': out += '\n'; return;
      case 'r': out += '\r'; return;
      case 't': out += '\t'; return;
      case 'u': break;
      default: fail("an unknown escape in a string");
    }
    uint32_t code = parse_hex4();
    if (code >= 0xDC00 && code <= 0xDFFF) fail("a lone surrogate in a string");
    if (code >= 0xD800 && code <= 0xDBFF) {
      if (!has(2) || json_.substr(at_, 2) != "\\u") fail("a lone surrogate in a string");
      at_ += 2;
      uint32_t low = parse_hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("a lone surrogate in a string");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, code);
  }

  uint32_t parse_hex4() {
    if (!has(4)) fail("an incomplete \\u escape");
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      char c = json_[at_];
      uint32_t digit = c >= '0' && c <= '9'   ? static_cast<uint32_t>(c - '0')
                       : c >= 'a' && c <= 'f' ? static_cast<uint32_t>(c - 'a' + 10)
                       : c >= 'A' && c <= 'F' ? static_cast<uint32_t>(c - 'A' + 10)
                                              : 16u;
      if (digit == 16) fail("an incomplete \\u escape");
      code = code * 16 + digit;
    }
    return code;
  }

  static void append_utf8(std::string& out, uint32_t code) {
    auto add = [&](uint32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
      add(code);
    } else if (code < 0x800) {
      add(0xC0 | (code >> 6));
      add(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      add(0xE0 | (code >> 12));
      add(0x80 | ((code >> 6) & 0x3F));
      add(0x80 | (code & 0x3F));
    } else {
      add(0xF0 | (code >> 18));
      add(0x80 | ((code >> 12) & 0x3F));
      add(0x80 | ((code >> 6) & 0x3F));
      add(0x80 | (code & 0x3F));
    }
  }

  // Sorting indices instead of hashing as we go: 4 bytes a name, and no collisions to provoke.
  void check_unique_names() const {
    auto check = [](const auto& items, auto name_of, const char* what) {
      std::vector<uint32_t> order(items.size());
      std::iota(order.begin(), order.end(), 0u);
      std::sort(order.begin(), order.end(),
                [&](uint32_t a, uint32_t b) { return name_of(items[a]) < name_of(items[b]); });
      for (size_t i = 1; i < order.size(); ++i) {
        const std::string& name = name_of(items[order[i]]);
        if (name == name_of(items[order[i - 1]])) {
          throw FormatError(std::string(what) + " " + quoted(name) + " is given twice");
        }
      }
    };
    check(header_.entries, [](const TensorEntry& e) -> const std::string& { return e.name; },
          "tensor");
    check(header_.metadata,
          [](const std::pair<std::string, std::string>& m) -> const std::string& {
            return m.first;
          },
          "metadata");
  }

  // The data is covered exactly: hidden bytes could carry another file (a polyglot), an overlap
  // could alias one tensor's data to another's.
  void check_layout() const {
    std::vector<uint32_t> order(header_.entries.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      const TensorEntry& x = header_.entries[a];
      const TensorEntry& y = header_.entries[b];
      return x.begin != y.begin ? x.begin < y.begin : x.end < y.end;
    });
    uint64_t covered = 0;
    for (uint32_t i : order) {
      const TensorEntry& entry = header_.entries[i];
      if (entry.begin < covered) {
        fail_tensor(entry, "overlaps another tensor: it begins at byte " +
                               std::to_string(entry.begin) + ", the one before ends at " +
                               std::to_string(covered));
      }
      if (entry.begin > covered) {
        fail_tensor(entry, "has " + std::to_string(entry.begin - covered) +
                               " unused bytes before it (a hole at byte " +
                               std::to_string(covered) + ")");
      }
      covered = entry.end;
    }
    if (covered != data_bytes_) {
      throw FormatError("the tensors end at byte " + std::to_string(covered) + " of " +
                        std::to_string(data_bytes_) + " bytes of data: trailing bytes");
    }
  }

  std::string_view json_;
  size_t available_ = 0;  // bytes of json_ that have been read
  Read read_;
  uint64_t data_bytes_;
  const SafetensorsLimits& limits_;
  size_t at_ = 0;
  bool has_metadata_ = false;
  SafetensorsHeader header_;
};

uint64_t decode_length(const unsigned char* bytes) {
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | bytes[i];
  return length;
}

// Every check that needs no more than the file's size and its first 8 bytes.
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

SafetensorsHeader parse_safetensors_json(std::string_view json, uint64_t data_bytes,
                                         const SafetensorsLimits& limits) {
  return Parser(json, data_bytes, limits).parse();
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
    // Not a std::string, which would touch (zero) all of it first.
    std::unique_ptr<char[]> json(new char[length]);
    Parser parser(
        std::string_view(json.get(), length),
        [&](size_t offset, size_t bytes) { file.read(8 + offset, json.get() + offset, bytes); },
        file.size() - 8 - length, limits);
    SafetensorsHeader header = parser.parse();
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
    if (entry.name == kMetadataKey) {
      throw FormatError("a tensor must not be called __metadata__");
    }
    uint64_t bytes = entry.dtype->bytes;
    for (int64_t dim : entry.shape) {
      if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
        throw FormatError("tensor " + quoted(entry.name) + ": has a shape too large to count");
      }
    }
    if (json.size() > 1) json += ',';
    append_json_string(json, entry.name);
    json += ":{\"dtype\":\"" + std::string(entry.dtype->name) + "\",\"shape\":[";
    for (size_t i = 0; i < entry.shape.size(); ++i) {
      json += (i > 0 ? "," : "") + std::to_string(entry.shape[i]);
    }
    json += "],\"data_offsets\":[" + std::to_string(offset) + "," +
            std::to_string(offset + bytes) + "]}";
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
  // What is written must be readable: names, duplicates and sums go through the same checks.
  parse_safetensors_json(json, offset, limits);
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>((json.size() >> (8 * i)) & 0xFF);
  return out + json;
}

}  // namespace llamaforge::io

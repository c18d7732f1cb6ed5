#include "io/json_cursor.h"

#include <algorithm>

#include "io/file_error.h"

namespace llamaforge::io {
namespace {

constexpr size_t kReadBlock = 256 * 1024;

void append_utf8(std::string& out, uint32_t code) {
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

}  // namespace

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

void JsonCursor::fail(const std::string& what) const {
  throw FormatError("safetensors header, byte " + std::to_string(at_) + ": " + what);
}

// Whether `count` more bytes follow; they are in memory then.
bool JsonCursor::has(size_t count) {
  if (available_ - at_ >= count) return true;
  if (json_.size() - at_ < count) return false;
  while (available_ - at_ < count) {
    const size_t bytes = std::min(kReadBlock, json_.size() - available_);
    read_(available_, bytes);
    available_ += bytes;
  }
  return true;
}

void JsonCursor::skip_space() {
  while (has(1)) {
    char c = json_[at_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
    ++at_;
  }
}

void JsonCursor::expect(char wanted, const char* where) {
  if (peek() != wanted) {
    fail(std::string("expected '") + wanted + "' " + where + (has(1) ? "" : ", but the header ends"));
  }
  ++at_;
}

uint64_t JsonCursor::parse_integer() {
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

std::string JsonCursor::parse_string(size_t limit) {
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
void JsonCursor::append_plain(std::string& out) {
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
void JsonCursor::parse_utf8(std::string& out) {
  auto byte = [&](size_t i) { return has(i + 1) ? static_cast<unsigned char>(json_[at_ + i]) : 0u; };
  unsigned lead = byte(0);
  size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                  : lead >= 0xE0 && lead <= 0xEF ? 3
                  : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                 : 0;
  if (length == 0) fail("invalid UTF-8");
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) fail("invalid UTF-8");
  }
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) || (lead == 0xF0 && byte(1) < 0x90) ||
      (lead == 0xF4 && byte(1) > 0x8F)) {
    fail("invalid UTF-8");
  }
  out.append(json_.substr(at_, length));
  at_ += length;
}

void JsonCursor::parse_escape(std::string& out) {
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

uint32_t JsonCursor::parse_hex4() {
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

}  // namespace llamaforge::io

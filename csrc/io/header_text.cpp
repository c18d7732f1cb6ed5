#include "io/header_text.h"

#include <algorithm>

#include "io/file_error.h"

namespace llamaforge::io {
namespace {

constexpr size_t kReadBlock = 256 * 1024;
constexpr size_t kLongestEscape = 6;   // longest escape of one byte: \u0041
constexpr size_t kLongestNumber = 32;  // a count has at most 16 digits

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
bool is_structure(char c) {
  return c == '{' || c == '}' || c == '[' || c == ']' || c == ':' || c == ',';
}

}  // namespace

void HeaderText::fail(const std::string& what) const {
  throw FormatError("safetensors header, byte " + std::to_string(at_) + ": " + what);
}

void HeaderText::fail_string() const {
  fail("a string longer than " + std::to_string(string_bytes_) + " bytes");
}

void HeaderText::load() {
  const size_t bytes = std::min(kReadBlock, json_.size() - available_);
  read_(available_, bytes);
  available_ += bytes;
}

char HeaderText::current() {
  if (at_ == available_) load();
  const char c = json_[at_];
  return !in_string_ && is_space(c) ? ' ' : c;
}

void HeaderText::advance() {
  const char c = last_ = current();
  ++at_;
  if (in_string_) {
    if (c == '"' && !escaped_) {
      in_string_ = false;
      token_ = 0;
      return;
    }
    escaped_ = c == '\\' && !escaped_;
    if (++token_ > kLongestEscape * string_bytes_) fail_string();
  } else if (c == ' ') {
    token_ = 0;
    while (!at_end() && current() == ' ') ++at_;
  } else if (c == '"' || is_structure(c)) {
    in_string_ = c == '"';
    token_ = 0;
  } else if (++token_ > kLongestNumber) {
    fail("a number above 2^53 - 1, or of more than " + std::to_string(kLongestNumber) +
         " characters");
  }
}

}  // namespace llamaforge::io

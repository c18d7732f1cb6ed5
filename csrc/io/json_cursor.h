// A cursor over the JSON of a file header that nobody vouches for: the pieces of the grammar, strict, without
// recursion, and nothing allocated by a length that has not been seen. What the pieces mean is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace llamaforge::io {

/// The largest integer that JavaScript can count to.
constexpr uint64_t kLargestInteger = (uint64_t{1} << 53) - 1;

/// A name as a message may show it: short, without control characters, in double quotes.
std::string quoted(std::string_view name);

class JsonCursor {
 public:
  /// read(offset, bytes) fills that part of the text.
  using Read = std::function<void(size_t offset, size_t bytes)>;

  /// All of the text is in memory.
  JsonCursor(std::string_view json, size_t name_bytes)
      : json_(json), available_(json.size()), name_bytes_(name_bytes) {}

  /// The text is read as the cursor comes to it: a header that is 100 MB long and wrong in its first line costs a line.
  JsonCursor(std::string_view json, Read read, size_t name_bytes)
      : json_(json), read_(std::move(read)), name_bytes_(name_bytes) {}

  /// @throws FormatError with the byte it is at
  [[noreturn]] void fail(const std::string& what) const;

  bool at_end() const { return at_ == json_.size(); }
  char current() { return has(1) ? json_[at_] : '\0'; }

  void skip_space();

  /// The next byte that is no white space; 0 at the end (a NUL byte is no token either).
  char peek() {
    skip_space();
    return current();
  }

  void expect(char wanted, const char* where);

  /// An object: calls member(key) with the cursor at the value.
  template <typename Member>
  void parse_members(Member&& member) {
    expect('{', "at the start of an object");
    if (peek() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      if (peek() != '"') fail("expected a key in double quotes");
      std::string key = parse_string(name_bytes_);
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

  /// An array of non-negative integers; value(n) for each.
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

  uint64_t parse_integer();

  /// A string of at most `limit` bytes; the cursor is at its opening quote, which the caller has seen.
  std::string parse_string(size_t limit);

 private:
  bool has(size_t count);
  void append_plain(std::string& out);
  void parse_utf8(std::string& out);
  void parse_escape(std::string& out);
  uint32_t parse_hex4();

  std::string_view json_;
  size_t available_ = 0;  // bytes of json_ that have been read
  Read read_;
  size_t name_bytes_;
  size_t at_ = 0;
};

}  // namespace llamaforge::io

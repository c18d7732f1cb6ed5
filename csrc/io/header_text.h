// The text of an untrusted header, in the form that a JSON parser takes. The text is read from the
// file only as the parser comes to it, and without the parts that would make the parser's memory
// grow. A header that is 100 MB long and wrong in its first line costs one line.
//
// The parser keeps a token, and white space with it, until the token is whole. So a run of white
// space reaches the parser as one space, and a token that is too long to be right ends the parse
// before it is whole.
#pragma once

#include <cstddef>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

namespace llamaforge::io {

class HeaderText {
 public:
  /// read(offset, bytes) fills that part of the text; without it all of the text is in memory.
  using Read = std::function<void(size_t offset, size_t bytes)>;
  HeaderText(std::string_view json, Read read, size_t string_bytes)
      : json_(json),
        available_(read ? 0 : json.size()),
        read_(std::move(read)),
        string_bytes_(string_bytes) {}
  HeaderText(const HeaderText&) = delete;
  HeaderText& operator=(const HeaderText&) = delete;

  /// @throws FormatError with the byte that the parser is at
  [[noreturn]] void fail(const std::string& what) const;

  /// Limits the bytes of strings from here on, counted after their escapes are resolved.
  void limit_strings(size_t bytes) { string_bytes_ = bytes; }
  /// @throws FormatError if a string, with its escapes resolved, is longer
  void check_string(std::string_view value) const {
    if (value.size() > string_bytes_) fail_string();
  }

  bool at_end() const { return at_ == json_.size(); }
  char current();
  void advance();
  /// Returns the character taken last. After a number, the parser has taken one character more.
  char last() const { return last_; }

  // An input iterator over the text. Moving one copy moves all copies.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = char;
    explicit Iterator(HeaderText* text) : text_(text) {}
    char operator*() const { return text_->current(); }
    Iterator& operator++() {
      text_->advance();
      return *this;
    }
    // Compares with the end, which has no text.
    bool operator==(const Iterator& end) const { return text_ == end.text_ || text_->at_end(); }

   private:
    HeaderText* text_;
  };
  Iterator begin() { return Iterator(this); }
  Iterator end() { return Iterator(nullptr); }

 private:
  [[noreturn]] void fail_string() const;
  void load();

  std::string_view json_;
  size_t available_;  // bytes of json_ that are in memory
  Read read_;
  size_t string_bytes_;
  size_t at_ = 0;
  size_t token_ = 0;  // bytes of the token at at_ so far
  bool in_string_ = false, escaped_ = false;
  char last_ = '\0';
};

}  // namespace llamaforge::io

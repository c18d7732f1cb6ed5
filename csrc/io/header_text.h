// The text of a header that nobody vouches for, as a JSON parser may be given it: read from the
// file only as the parser comes to it, and without what would make the parser's memory grow. A
// header that is 100 MB long and wrong in its first line costs a line.
//
// The parser keeps a token until it is whole, and white space with it. So a run of white space
// reaches it as one space, and a token that is too long to be right ends the parse before it is
// whole.
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

  /// What strings from here on may have, once their escapes are resolved.
  void limit_strings(size_t bytes) { string_bytes_ = bytes; }
  /// @throws FormatError if a string, without its escapes, is longer
  void check_string(std::string_view value) const {
    if (value.size() > string_bytes_) fail_string();
  }

  bool at_end() const { return at_ == json_.size(); }
  char current();
  void advance();
  /// Taken last: after a number the parser has taken one character more.
  char last() const { return last_; }

  // An input iterator over the text, which moves for all its copies at once.
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
    // Against the end, which has no text.
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

// Errors of the native core. They are C++ exceptions inside the core and become JS errors with a
// `code` at its border.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace llamaforge {

class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message)
      : std::runtime_error(message), code_(std::move(code)) {}
  const std::string& code() const { return code_; }

 private:
  std::string code_;
};

namespace detail {
inline void format_into(std::ostringstream& out, std::string_view pattern) { out << pattern; }
template <class First, class... Rest>
void format_into(std::ostringstream& out, std::string_view pattern, const First& first,
                 const Rest&... rest) {
  const size_t hole = pattern.find("{}");
  out << pattern.substr(0, hole);
  if (hole == std::string_view::npos) return;
  out << first;
  format_into(out, pattern.substr(hole + 2), rest...);
}
}  // namespace detail

// Fills each {} of the pattern with the next argument.
template <class... Args>
std::string format(std::string_view pattern, const Args&... args) {
  std::ostringstream out;
  detail::format_into(out, pattern, args...);
  return out.str();
}

// Throws unless the condition holds. Kernels check before they write anything.
#define LF_CHECK(condition, ...)                                                                 \
  do {                                                                                           \
    if (!(condition)) throw ::llamaforge::Error("ERR_SHAPE", ::llamaforge::format(__VA_ARGS__)); \
  } while (0)

}  // namespace llamaforge

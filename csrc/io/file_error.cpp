#include "io/file_error.h"

#include <cstring>

namespace llamaforge::io {
namespace {

std::string describe(int error) {
  const char* text = strerrordesc_np(error);
  return text != nullptr ? std::string(" (") + text + ")" : std::string();
}

}  // namespace

std::string errno_name(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "errno " + std::to_string(error);
}

std::string in_quotes(std::string_view name) {
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

SystemError::SystemError(const std::string& call, const std::string& path, int error)
    : Error(errno_name(error), call + " " + path + ": " + errno_name(error) + describe(error)),
      error_(error),
      call_(call),
      path_(path) {}

}  // namespace llamaforge::io

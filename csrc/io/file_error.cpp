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

SystemError::SystemError(const std::string& call, const std::string& path, int error)
    : Error(errno_name(error), call + " " + path + ": " + errno_name(error) + describe(error)),
      error_(error),
      call_(call),
      path_(path) {}

}  // namespace llamaforge::io

// Errors of the file layer. There are two kinds, because their remedies differ: the system refused
// (disk full, no permission: SystemError, with errno's name as its code) or the bytes are wrong
// (FormatError).
#pragma once

#include <string>
#include <string_view>

#include "runtime/error.h"

namespace llamaforge::io {

/// Returns `ENOSPC`, `EIO`, ...: a symbol that a user can look up, whereas strerror's text depends
/// on the locale.
std::string errno_name(int error);

/// A name as a message may show it: short, without control characters, in double quotes.
std::string in_quotes(std::string_view name);

class SystemError : public Error {
 public:
  /// @param call the attempted call, e.g. "write"; @param error the value of errno
  SystemError(const std::string& call, const std::string& path, int error);
  int error() const { return error_; }
  const std::string& call() const { return call_; }
  const std::string& path() const { return path_; }

 private:
  int error_;
  std::string call_;
  std::string path_;
};

class FormatError : public Error {
 public:
  explicit FormatError(const std::string& message) : Error("ERR_CHECKPOINT", message) {}
};

}  // namespace llamaforge::io

// A lock that ends with its process, however that ends: flock(2). The text in the file says who holds it.
#pragma once

#include <string>

#include "io/file_error.h"

namespace llamaforge::io {

class FileLock {
 public:
  /// Creates the file if need be and locks it. The file is never removed: removing a locked file
  /// would let two processes lock two files of one name.
  /// @throws SystemError: EAGAIN if another holds it; ENOSYS, ENOTSUP or ENOLCK where the file
  /// system has no locks
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /// Replaces the file's text. @throws SystemError
  void write(const std::string& text);

 private:
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace llamaforge::io

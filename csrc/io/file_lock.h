// A lock that ends with its process, however the process ends: flock(2). The text in the file names
// the holder.
#pragma once

#include <string>

#include "io/file_error.h"

namespace llamaforge::io {

class FileLock {
 public:
  /// Creates the file if necessary and locks it. The file is never removed, because removing a
  /// locked file would let two processes lock two files with the same name.
  /// @throws SystemError: EAGAIN if another process holds it; ENOSYS, ENOTSUP or ENOLCK if the file
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

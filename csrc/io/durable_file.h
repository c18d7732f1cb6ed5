// Writes that survive a crash: create, write, fsync, rename, fsync the folder. No other code calls
// fsync. Files are written with write(), never through a mapping: on a full disk a store into a
// mapping raises SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "io/file_error.h"
#include "io/sha256.h"

namespace llamaforge::io {

/// A new file that is written once, from front to back, and hashed while it is written.
class DurableFile {
 public:
  /// Creates `path`, which must not exist. @throws SystemError
  explicit DurableFile(const std::string& path);
  /// Closes without fsync: an unfinished file need not survive.
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  /// Writes all bytes: continues after a short write or a signal. @throws SystemError
  void write(const void* data, size_t bytes);

  /// Calls fsync and close. Returns the SHA-256 of all bytes written, in hexadecimal. After an
  /// error the file must be discarded: the kernel may have dropped the dirty pages, and a second
  /// fsync would report success over lost data.
  std::string finish();

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t bytes_ = 0;
  Sha256 hash_;
};

/// Calls fsync on a folder, which makes creations, renames and removals in it durable.
/// @throws SystemError
void sync_directory(const std::string& path);

/// Renames atomically within one file system. @throws SystemError
void rename_path(const std::string& from, const std::string& to);

/// Atomically exchanges two names, so that a folder can be replaced by another without a moment in
/// which neither exists.
/// @throws SystemError: EINVAL or ENOSYS if the file system does not support it
void exchange_paths(const std::string& one, const std::string& other);

}  // namespace llamaforge::io

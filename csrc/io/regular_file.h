// Reads files that others may have written, or may be writing: only regular files, no symbolic
// links, and with pread, never mmap. In a file that is truncated meanwhile, a mapping raises
// SIGBUS, whereas a short pread becomes an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace llamaforge::io {

class RegularFile {
 public:
  /// Opens without following a link and without blocking on a pipe.
  /// @throws SystemError, or FormatError if the path is no regular file
  explicit RegularFile(const std::string& path);
  ~RegularFile();
  RegularFile(const RegularFile&) = delete;
  RegularFile& operator=(const RegularFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

  /// Device, inode, size and modification time: equal as long as nobody has replaced or changed the
  /// file.
  const std::string& identity() const { return identity_; }

  /// Reads exactly `bytes`. @throws FormatError if the file ends before that
  void read(uint64_t offset, void* out, size_t bytes) const;

  /// @throws FormatError if the file is no longer the one that was opened
  void check_unchanged() const;

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
  std::string identity_;
};

}  // namespace llamaforge::io

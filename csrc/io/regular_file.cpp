#include "io/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>

#include <algorithm>

#include "io/file_error.h"

namespace llamaforge::io {
namespace {

// The kernel moves at most 0x7ffff000 bytes per call anyway.
constexpr size_t kLargestRead = size_t{1} << 30;

std::string identity_of(const struct stat& status) {
  auto time = [](const struct timespec& moment) {
    return std::to_string(moment.tv_sec) + "." + std::to_string(moment.tv_nsec);
  };
  return std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino) + ":" +
         std::to_string(status.st_size) + ":" + time(status.st_mtim);
}

}  // namespace

RegularFile::RegularFile(const std::string& path) : path_(path) {
  if (path.find('\0') != std::string::npos) {
    throw FormatError("the file name holds a NUL byte: " + std::string(path.c_str()) + "...");
  }
  do {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) {
    if (errno == ELOOP) {
      throw FormatError(path + " is a symbolic link; only regular files are read");
    }
    throw SystemError("open", path, errno);
  }
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) {
    int error = errno;
    ::close(descriptor_);
    throw SystemError("stat", path, error);
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw FormatError(path + " is not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  identity_ = identity_of(status);
}

RegularFile::~RegularFile() { ::close(descriptor_); }

void RegularFile::read(uint64_t offset, void* out, size_t bytes) const {
  auto* cursor = static_cast<char*>(out);
  size_t left = bytes;
  while (left > 0) {
    ssize_t got = ::pread(descriptor_, cursor, std::min(left, kLargestRead),
                          static_cast<off_t>(offset + (bytes - left)));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw SystemError("read", path_, errno);
    }
    if (got == 0) {
      throw FormatError(path_ + " ends at byte " + std::to_string(offset + (bytes - left)) +
                        ", needed " + std::to_string(offset + bytes) +
                        (offset + bytes <= size_ ? ": it was truncated while being read" : ""));
    }
    cursor += got;
    left -= static_cast<size_t>(got);
  }
}

void RegularFile::check_unchanged() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw SystemError("stat", path_, errno);
  if (identity_of(status) != identity_) {
    throw FormatError(path_ + " was changed while being read");
  }
}

}  // namespace llamaforge::io

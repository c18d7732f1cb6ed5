#include "io/durable_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <cerrno>
#include <cstdio>

#include <algorithm>

namespace llamaforge::io {
namespace {

void sync_descriptor(int descriptor, const std::string& path) {
  int result;
  do {
    result = ::fsync(descriptor);
  } while (result != 0 && errno == EINTR);
  if (result != 0) throw SystemError("fsync", path, errno);
}

// On Linux the descriptor is gone even if close() fails, also with EINTR, so close() must not be
// called again.
void close_descriptor(int& descriptor, const std::string& path) {
  int closing = descriptor;
  descriptor = -1;
  if (::close(closing) != 0 && errno != EINTR) throw SystemError("close", path, errno);
}

// A NUL would cut the path short, so the call would apply to another file.
void expect_no_nul(const char* call, const std::string& path) {
  if (path.find('\0') != std::string::npos) throw SystemError(call, path.c_str(), EINVAL);
}

int open_retrying(const std::string& path, int flags, const char* call) {
  expect_no_nul(call, path);
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) throw SystemError(call, path, errno);
  return descriptor;
}

}  // namespace

DurableFile::DurableFile(const std::string& path)
    : path_(path),
      descriptor_(open_retrying(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, "create")) {}

DurableFile::~DurableFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void DurableFile::write(const void* data, size_t bytes) {
  if (descriptor_ < 0) throw SystemError("write", path_, EBADF);
  const auto* cursor = static_cast<const char*>(data);
  size_t left = bytes;
  while (left > 0) {
    ssize_t put = ::write(descriptor_, cursor, left);
    if (put < 0) {
      if (errno == EINTR) continue;
      throw SystemError("write", path_, errno);
    }
    if (put == 0) throw SystemError("write", path_, EIO);
    cursor += put;
    left -= static_cast<size_t>(put);
  }
  hash_.update(data, bytes);
  bytes_ += bytes;
}

std::string DurableFile::finish() {
  if (descriptor_ < 0) throw SystemError("fsync", path_, EBADF);
  sync_descriptor(descriptor_, path_);
  close_descriptor(descriptor_, path_);
  return hash_.finish();
}

void sync_directory(const std::string& path) {
  int descriptor = open_retrying(path, O_RDONLY | O_DIRECTORY, "open");
  try {
    sync_descriptor(descriptor, path);
  } catch (...) {
    ::close(descriptor);
    throw;
  }
  close_descriptor(descriptor, path);
}

void rename_path(const std::string& from, const std::string& to) {
  expect_no_nul("rename", from);
  expect_no_nul("rename", to);
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw SystemError("rename", from + " -> " + to, errno);
}

void exchange_paths(const std::string& one, const std::string& other) {
  expect_no_nul("exchange", one);
  expect_no_nul("exchange", other);
  if (::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) != 0) {
    throw SystemError("exchange", one + " <-> " + other, errno);
  }
}

}  // namespace llamaforge::io

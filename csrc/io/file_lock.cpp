#include "io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <cerrno>

namespace llamaforge::io {

FileLock::FileLock(const std::string& path) : path_(path) {
  do {
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) throw SystemError("open", path, errno);
  int result;
  do {
    result = ::flock(descriptor_, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    const int error = errno;
    ::close(descriptor_);
    throw SystemError("lock", path, error);
  }
}

FileLock::~FileLock() { ::close(descriptor_); }

void FileLock::write(const std::string& text) {
  if (::ftruncate(descriptor_, 0) != 0) throw SystemError("truncate", path_, errno);
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t put =
        ::pwrite(descriptor_, text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw SystemError("write", path_, put < 0 ? errno : EIO);
    done += static_cast<size_t>(put);
  }
}

}  // namespace llamaforge::io

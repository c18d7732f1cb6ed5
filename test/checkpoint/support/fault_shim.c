// An LD_PRELOAD shim that makes file operations below FAULT_DIR fail or end the process.
//   FAULT_DIR     only calls on paths below it count
//   FAULT_POINT   number of the affected call, from 1; 0 or absent: none
//   FAULT_ACTION  kill: SIGKILL before the call; half-kill: half of a write, then SIGKILL;
//                 EIO, ENOSPC, EDQUOT: the call fails;
//                 every-write: from FAULT_POINT on every write fails with ENOSPC
//   FAULT_SHORT   1: every write writes at most half, and every other one is interrupted first (EINTR)
//   FAULT_DELAY   milliseconds that each fsync takes longer
//   FAULT_READ_DELAY  milliseconds that reads take longer, from number FAULT_READ_POINT on;
//                 FAULT_READ_COUNT limits their number, by default no limit
//   FAULT_LOG     file to which each counted call is appended: name, path
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long count = 0;

static int below(const char* path) {
  const char* dir = getenv("FAULT_DIR");
  return dir && path && strncmp(path, dir, strlen(dir)) == 0;
}

static const char* path_of(int fd, char* buffer, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, buffer, size - 1);
  if (n < 0) return NULL;
  buffer[n] = 0;
  return buffer;
}

static void log_call(const char* name, const char* path) {
  const char* file = getenv("FAULT_LOG");
  if (!file) return;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  char line[4608];
  int n = snprintf(line, sizeof line, "%s %s\n", name, path);
  syscall(SYS_write, fd, line, n);
  syscall(SYS_close, fd);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// Counts a call. Returns 0 to continue, -1 to fail with errno set, 1 to write half and die.
static int point(const char* name, const char* path, int is_write) {
  if (!below(path)) return 0;
  pthread_mutex_lock(&mutex);
  long now = ++count;
  log_call(name, path);
  pthread_mutex_unlock(&mutex);
  const char* at = getenv("FAULT_POINT");
  const char* action = getenv("FAULT_ACTION");
  long wanted = at ? atol(at) : 0;
  if (!wanted || !action) return 0;
  if (!strcmp(action, "every-write") && now >= wanted && is_write) {
    errno = ENOSPC;
    return -1;
  }
  if (now != wanted) return 0;
  if (!strcmp(action, "kill")) die();
  if (!strcmp(action, "half-kill")) {
    if (is_write) return 1;
    die();
  }
  errno = !strcmp(action, "EIO") ? EIO : !strcmp(action, "ENOSPC") ? ENOSPC : !strcmp(action, "EDQUOT") ? EDQUOT : 0;
  return errno ? -1 : 0;
}

ssize_t write(int fd, const void* data, size_t size) {
  static __thread unsigned calls = 0;
  char buffer[4096];
  const char* path = path_of(fd, buffer, sizeof buffer);
  if (below(path)) {
    int verdict = point("write", path, 1);
    if (verdict < 0) return -1;
    if (verdict > 0) {
      syscall(SYS_write, fd, data, size / 2);
      die();
    }
    if (getenv("FAULT_SHORT")) {
      if (++calls % 2) {
        errno = EINTR;
        return -1;
      }
      if (size > 1) size /= 2;
    }
  }
  return syscall(SYS_write, fd, data, size);
}

static void delay_read(int fd) {
  static long reads = 0;
  const char* delay = getenv("FAULT_READ_DELAY");
  if (!delay) return;
  char buffer[4096];
  if (!below(path_of(fd, buffer, sizeof buffer))) return;
  const char* first = getenv("FAULT_READ_POINT");
  const char* count = getenv("FAULT_READ_COUNT");
  const long now = __atomic_add_fetch(&reads, 1, __ATOMIC_RELAXED), from = first ? atol(first) : 1;
  if (now < from || (count && now >= from + atol(count))) return;
  const long ms = atol(delay);
  const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  delay_read(fd);
  return syscall(SYS_pread64, fd, data, size, offset);
}

ssize_t preadv64(int fd, const struct iovec* parts, int count, off64_t offset) {
  delay_read(fd);
  return syscall(SYS_preadv, fd, parts, (long)count, (long)offset, (long)(offset >> 32));
}

int fsync(int fd) {
  char buffer[4096];
  const char* path = path_of(fd, buffer, sizeof buffer);
  if (point("fsync", path, 0) < 0) return -1;
  const char* delay = getenv("FAULT_DELAY");
  if (delay && below(path)) usleep((useconds_t)atol(delay) * 1000);
  return (int)syscall(SYS_fsync, fd);
}

int rename(const char* from, const char* to) {
  if (point("rename", to, 0) < 0) return -1;
  return (int)syscall(SYS_rename, from, to);
}

int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) {
  if (getenv("FAULT_NO_EXCHANGE")) {
    errno = EINVAL;
    return -1;
  }
  if (point("exchange", to, 0) < 0) return -1;
  return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

int flock(int fd, int operation) {
  if (getenv("FAULT_NO_FLOCK")) {
    errno = ENOSYS;
    return -1;
  }
  return (int)syscall(SYS_flock, fd, operation);
}

int mkdir(const char* path, mode_t mode) {
  if (point("mkdir", path, 0) < 0) return -1;
  return (int)syscall(SYS_mkdir, path, mode);
}

int unlink(const char* path) {
  if (point("unlink", path, 0) < 0) return -1;
  return (int)syscall(SYS_unlink, path);
}

int rmdir(const char* path) {
  if (point("rmdir", path, 0) < 0) return -1;
  return (int)syscall(SYS_rmdir, path);
}

static int open_any(const char* path, int flags, va_list arguments) {
  mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0;
  if ((flags & O_CREAT) && point("create", path, 0) < 0) return -1;
  return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  int fd = open_any(path, flags, arguments);
  va_end(arguments);
  return fd;
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  int fd = open_any(path, flags, arguments);
  va_end(arguments);
  return fd;
}

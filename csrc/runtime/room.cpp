#include "runtime/room.h"

#include <sys/mman.h>

namespace llamaforge {

// The mapping is writable and without MAP_NORESERVE, so that every limit counts: on address space,
// data and committed memory.
bool has_room(size_t bytes) noexcept {
  void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return false;
  munmap(place, bytes);
  return true;
}

}  // namespace llamaforge

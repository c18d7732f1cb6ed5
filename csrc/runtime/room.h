// Room in this process's memory for those who cannot bear a refusal: V8 and oneDNN end the process or crash.
#pragma once

#include <cstddef>

namespace llamaforge {

// Stays free for them when tensors are given memory.
constexpr size_t kReserve = size_t{64} << 20;

// Whether the system would give that many bytes now. Takes some microseconds.
bool has_room(size_t bytes) noexcept;

}  // namespace llamaforge

// Keeps memory of this process free for V8 and oneDNN, which end the process or crash if the system
// refuses memory.
#pragma once

#include <cstddef>

namespace llamaforge {

// Bytes that stay free for them when tensors allocate memory.
constexpr size_t kReserve = size_t{64} << 20;

// Whether the system would give that many bytes now. The check takes some microseconds.
bool has_room(size_t bytes) noexcept;

}  // namespace llamaforge

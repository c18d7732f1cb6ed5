// Allocates memory of JS arrays in a way that lets the system refuse it. napi_create_arraybuffer
// would then end the process.
#pragma once

#include <napi.h>

namespace llamaforge {

// Returns an ArrayBuffer of zeros. Throws ERR_OUT_OF_MEMORY with the requested bytes; `op` is for
// the message.
Napi::ArrayBuffer new_array_buffer(Napi::Env env, const char* op, size_t bytes);

}  // namespace llamaforge

// Memory of JS arrays that the system may refuse. napi_create_arraybuffer ends the process then.
#pragma once

#include <napi.h>

namespace llamaforge {

// An ArrayBuffer of zeros. Throws ERR_OUT_OF_MEMORY with the bytes asked for; `op` is for the message.
Napi::ArrayBuffer new_array_buffer(Napi::Env env, const char* op, size_t bytes);

}  // namespace llamaforge

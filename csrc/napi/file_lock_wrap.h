// The JS class FileLock (io_wrap.h).
#pragma once

#include <napi.h>

namespace llamaforge {

Napi::Function define_file_lock(Napi::Env env);

}  // namespace llamaforge

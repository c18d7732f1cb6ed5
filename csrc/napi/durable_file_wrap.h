// The JS class DurableFile (io_wrap.h).
#pragma once

#include <napi.h>

namespace llamaforge {

Napi::Function define_durable_file(Napi::Env env);

}  // namespace llamaforge

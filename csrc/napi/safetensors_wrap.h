// Safetensors files in JS: parseSafetensorsHeader, formatSafetensorsHeader, readTensor, readBytes
// (io_wrap.h).
#pragma once

#include <napi.h>

namespace llamaforge {

Napi::Value parse_safetensors_header(const Napi::CallbackInfo& info);
Napi::Value format_safetensors_header(const Napi::CallbackInfo& info);
Napi::Value read_tensor(const Napi::CallbackInfo& info);
Napi::Value read_bytes(const Napi::CallbackInfo& info);

}  // namespace llamaforge

// The JS class HostMemory: host memory into which tensors are copied again and again, so that the
// system hands out its pages only once. JS sees it as an ArrayBuffer. A running copy holds the
// memory itself, even if the ArrayBuffer is gone.
#pragma once

#include <napi.h>

#include <memory>

namespace llamaforge {

struct HostBytes {
  std::shared_ptr<char> data;
  size_t size = 0;
};

Napi::Function define_host_memory(Napi::Env env);

struct Place;
// Throws unless `value` is a HostMemory of this addon.
HostBytes host_bytes_from(Napi::Value value, Place place);

}  // namespace llamaforge

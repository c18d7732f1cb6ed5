// The JS class HostMemory: memory on the host that tensors are copied into again and again, so that the system hands
// out its pages once. JS sees it as an ArrayBuffer; a copy on its way holds the memory itself, whatever becomes of
// that.
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
// Throws unless it is a HostMemory of this addon.
HostBytes host_bytes_from(Napi::Value value, Place place);

}  // namespace llamaforge

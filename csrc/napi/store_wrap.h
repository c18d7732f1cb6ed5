// The JS class Store, and the function that connects one: see comm_wrap.h.
#pragma once

#include <napi.h>

#include <memory>

#include "comm/session.h"
#include "napi/args.h"

namespace llamaforge {

Napi::Function define_store(Napi::Env env);
// Returns the session of a JS value that is an open Store; throws otherwise.
std::shared_ptr<comm::Session> session_from(Napi::Value value, Place place);
// connectStore(host, port, rank, worldSize, token, timeoutMs)
Napi::Value connect_store(const Napi::CallbackInfo& info);

}  // namespace llamaforge

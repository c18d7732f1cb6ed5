// The JS classes Communicator and Work: see comm_wrap.h.
#pragma once

#include <napi.h>

#include <memory>

#include "comm/session.h"

namespace llamaforge {

// Content of a Communicator.
struct CommunicatorContent {
  std::shared_ptr<comm::Session> session;
  std::shared_ptr<comm::Group> group;
  int64_t device;
  int rank;
};

Napi::Function define_communicator(Napi::Env env);
Napi::Function define_work(Napi::Env env);

}  // namespace llamaforge

// Shared by the classes of `exports.comm`: their state in a JS environment, and the making of
// arguments and objects.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "comm/cpu_collectives.h"
#include "comm/session.h"
#include "napi/args.h"
#include "napi/environment.h"

namespace llamaforge {

// State per JS environment.
struct CommState {
  Napi::FunctionReference store_class, communicator_class, work_class, timeline_class;
  std::shared_ptr<comm::CommunicationThread> cpu_thread;  // made with the first group on the CPU
  std::vector<std::weak_ptr<comm::Group>> groups;
};

inline CommState& comm_state_of(Napi::Env env) { return *Environment::of(env).comm; }

inline comm::Milliseconds timeout_from(Napi::Value value, Place place) {
  const int64_t milliseconds = Argument<int64_t>::from(value, place);
  if (milliseconds < 0 || milliseconds > INT32_MAX)
    bad_argument(place, "a number of milliseconds", value);
  return comm::Milliseconds(milliseconds);
}

// Only the addon makes these classes: a script that calls their constructor has no External to
// pass.
template <class T>
T& made_from(const Napi::CallbackInfo& info, const char* name) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Error("ERR_ARGUMENT", format("[{}] is not made by `new`", name));
  return *info[0].As<Napi::External<T>>().Data();
}
template <class T>
Napi::Value make_wrapped(const Napi::FunctionReference& constructor, Napi::Env env, T& content) {
  return constructor.New({Napi::External<T>::New(env, &content)});
}

}  // namespace llamaforge

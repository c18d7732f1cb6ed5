// Shared by the classes and functions of `exports.io`: work on libuv's pool that answers a promise,
// and argument conversion.
#pragma once

#include <napi.h>

#include <functional>
#include <string>

#include "napi/args.h"

namespace llamaforge {

// Most bytes of one call: copying them on the JS thread takes about a millisecond.
constexpr size_t kLargestPiece = size_t{16} << 20;

std::string path_from(Napi::Value value, Place place);
uint64_t count_from(Napi::Value value, Place place);

// Converts any exception; a system error gets the fields of Node's own file errors.
Napi::Value js_error(Napi::Env env, std::exception_ptr failure);

// Runs `work` on the pool. `work` returns a function that makes the promise's value on the JS
// thread; `settled` runs there first.
using Finish = std::function<Napi::Value(Napi::Env)>;

class Task final : public Napi::AsyncWorker {
 public:
  static Napi::Value start(Napi::Env env, std::function<Finish()> work,
                           std::function<void()> settled = nullptr) {
    auto* task = new Task(env, std::move(work), std::move(settled));
    const Napi::Promise promise = task->deferred_.Promise();
    task->Queue();  // the task deletes itself after it has answered
    return promise;
  }

 private:
  Task(Napi::Env env, std::function<Finish()> work, std::function<void()> settled)
      : Napi::AsyncWorker(env, "llamaforge.io"),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        settled_(std::move(settled)) {}

  void Execute() override {
    try {
      finish_ = work_();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  // In a worker thread that is being terminated every call into JS fails, even settling the promise
  // and creating the error about that. Nobody is left to be told, and an exception that left this
  // function would end the process.
  void OnOK() override {
    if (settled_) settled_();
    try {
      answer();
    } catch (...) {
    }
  }

  void answer() {
    if (!failure_) {
      try {
        deferred_.Resolve(finish_ ? finish_(Env()) : Env().Undefined());
        return;
      } catch (const Napi::Error& error) {
        deferred_.Reject(error.Value());
        return;
      } catch (...) {
        failure_ = std::current_exception();
      }
    }
    deferred_.Reject(js_error(Env(), failure_));
  }

  Napi::Promise::Deferred deferred_;
  std::function<Finish()> work_;
  std::function<void()> settled_;
  Finish finish_;
  std::exception_ptr failure_;
};

// { bytes, sha256 } of the bytes that were read or written.
Finish digest(uint64_t bytes, std::string sha256);

}  // namespace llamaforge

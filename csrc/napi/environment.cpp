#include "napi/environment.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "runtime/threads.h"

namespace llamaforge {

namespace {

int default_threads() {
  if (const char* value = std::getenv("LLAMAFORGE_THREADS")) {
    char* end = nullptr;
    const long threads = std::strtol(value, &end, 10);
    if (end == value || *end != '\0' || threads < 1 || threads > 1024) {
      throw Error(
          "ERR_ARGUMENT",
          format("LLAMAFORGE_THREADS is \"{}\": expected a whole number from 1 to 1024", value));
    }
    return static_cast<int>(threads);
  }
  return std::max(1, omp_get_num_procs());
}

}  // namespace

void UnownedMemory::add(Napi::Env env, int64_t bytes) {
  constexpr int64_t kLeast = int64_t{1} << 30;
  held_ += bytes;
  if (held_ <= low_ + std::max(kLeast, low_ / 2)) return;
  low_ = held_;
  // External memory from 64 MB on makes V8 begin to mark, a little at a time. From half of its
  // maximal heap on, V8 collects at once, several times over, and JavaScript stands still for some
  // 80 ms. So the large amount is reported only if the small one has freed nothing.
  constexpr int64_t kSome = int64_t{128} << 20, kMuch = int64_t{1} << 42;
  constexpr int kPatience = 1;
  const int64_t pressure = ++in_vain_ > kPatience ? kMuch : kSome;
  if (pressure == kMuch) in_vain_ = 0;
  Napi::MemoryManagement::AdjustExternalMemory(env, pressure);
  Napi::MemoryManagement::AdjustExternalMemory(env, -pressure);
}

void UnownedMemory::remove(int64_t bytes) {
  held_ -= bytes;
  low_ = std::min(low_, held_);
  if (bytes > 0) in_vain_ = 0;
}

struct Environment::Pending {
  Napi::Promise::Deferred deferred;
  Napi::ObjectReference* result;  // null means undefined. Deleted on the JS thread only; leaked
                                  // when the environment ends.
  std::exception_ptr failure;
  Environment* owner;
};

Napi::Error to_js_error(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = (code == "ERR_ARGUMENT") ? Napi::TypeError::New(env, message)
                                               : Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

Napi::Error to_js_error(Napi::Env env, const std::exception& error) {
  if (const auto* own = dynamic_cast<const Error*>(&error))
    return to_js_error(env, own->code(), own->what());
  if (dynamic_cast<const std::bad_alloc*>(&error))
    return to_js_error(env, "ERR_OUT_OF_MEMORY", "out of host memory");
  if (const auto* system = dynamic_cast<const std::system_error*>(&error);
      system && system->code() == std::errc::resource_unavailable_try_again) {
    return to_js_error(env, "ERR_RESOURCE",
                       "the system refused a thread: raise the limit on processes (ulimit -u, a "
                       "container's pids limit)");
  }
  return to_js_error(env, "ERR_NATIVE", error.what());
}

Environment::Environment(Napi::Env env)
    : kernels_(cpu_kernels()), threads_(default_threads()), bridge_(std::make_shared<Bridge>()) {
  bridge_->to_js = Napi::ThreadSafeFunction::New(
      env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "llamaforge", 0, 1);
  bridge_->to_js.Unref(env);
  array_buffer_class = Napi::Persistent(env.Global().Get("ArrayBuffer").As<Napi::Function>());
}

Environment::~Environment() {
  for (const auto& action : before_end) action();
  {
    std::lock_guard lock(bridge_->mutex);
    bridge_->closed = true;
  }
  if (cpu_) cpu_->close();
  for (const auto& [device, gpu] : gpus_) gpu->close();
}

const std::shared_ptr<Stream>& Environment::stream(int64_t device) {
  if (device == 0) {
    if (!cpu_) {
      require_threads(threads_, "the CPU device");
      cpu_ = std::make_shared<CpuStream>(threads_);
    }
    return cpu_;
  }
  if (const auto found = gpus_.find(device); found != gpus_.end()) return found->second;
  if (device < 0 || device > INT32_MAX)
    throw Error("ERR_DEVICE", format("there is no device number {}", device));
  return gpus_.emplace(device, cuda().plugin->open(static_cast<int>(device - 1))).first->second;
}

const OpTable& Environment::ops(const Stream& stream) const {
  return &stream == cpu_.get() ? *kernels_.table : *cuda().plugin->ops;
}

void Environment::set_threads(int64_t threads) {
  if (threads < 1 || threads > 1024) {
    throw Error("ERR_ARGUMENT",
                format("[setThreads] expected a whole number from 1 to 1024, got {}", threads));
  }
  if (cpu_ && threads != threads_) {
    throw Error(
        "ERR_DEVICE",
        format(
            "[setThreads] the CPU device is in use with {} threads; set it before the first tensor",
            threads_));
  }
  threads_ = static_cast<int>(threads);
}

void Environment::refuse_recorded(const char* op) const {
  if (!recorder) return;
  throw Error(
      "ERR_ARGUMENT",
      format("[{}] a recording consists of operations on the device: call this before or after "
             "record(), which repeats no copy from or to the host and no wait",
             op));
}

void Environment::Poster::operator()(JsWork work) const {
  auto* kept = new JsWork(std::move(work));
  const auto run = [](Napi::Env env, Napi::Function, JsWork* raw) {
    // Without an environment, the JS references in the work must not be touched any more.
    if (env == nullptr) return;
    const std::unique_ptr<JsWork> work(raw);
    Napi::HandleScope scope(env);
    try {
      (*work)(env);
    } catch (...) {
      // Every call into JS throws in a worker that is being terminated.
    }
  };
  std::lock_guard lock(bridge_->mutex);
  if (!bridge_->closed && bridge_->to_js.NonBlockingCall(kept, run) != napi_ok)
    bridge_->closed = true;
}

Napi::Promise Environment::later(Napi::Env env, Settle& settle) {
  // Held by a pointer that is deleted only on the JS thread, and leaked when the environment ends.
  auto* deferred = new Napi::Promise::Deferred(Napi::Promise::Deferred::New(env));
  const Napi::Promise promise = deferred->Promise();
  settle = [this, deferred, post = poster()](std::exception_ptr failure,
                                             std::function<Napi::Value(Napi::Env)> make) {
    post([this, deferred, failure, make = std::move(make)](Napi::Env env) {
      const std::unique_ptr<Napi::Promise::Deferred> owned(deferred);
      if (--pending_ == 0) bridge_->to_js.Unref(env);
      try {
        if (failure) std::rethrow_exception(failure);
        owned->Resolve(make ? make(env) : env.Undefined());
      } catch (const Napi::Error& error) {
        owned->Reject(error.Value());
      } catch (const Error& error) {
        owned->Reject(to_js_error(env, error.code(), error.what()).Value());
      } catch (const std::exception& error) {
        owned->Reject(to_js_error(env, error).Value());
      }
    });
  };
  if (pending_++ == 0) bridge_->to_js.Ref(env);
  return promise;
}

Napi::Promise Environment::when_done(Napi::Env env, Stream& stream, Napi::Value result) {
  auto* kept = result.IsObject()
                   ? new Napi::ObjectReference(Napi::Persistent(result.As<Napi::Object>()))
                   : nullptr;
  auto* pending = new Pending{Napi::Promise::Deferred::New(env), kept, nullptr, this};
  const Napi::Promise promise = pending->deferred.Promise();

  auto settle = [](Napi::Env env, Napi::Function, Pending* raw) {
    if (env == nullptr) return;  // the environment is gone, so its references must not be touched
    std::unique_ptr<Pending> done(raw);
    std::unique_ptr<Napi::ObjectReference> kept(done->result);
    Environment& owner = *done->owner;
    // In a worker that is being terminated every call into JS throws, including the creation of an
    // error. Nobody waits for the promise then.
    try {
      if (--owner.pending_ == 0) owner.bridge_->to_js.Unref(env);
      Napi::HandleScope scope(env);
      try {
        if (done->failure) std::rethrow_exception(done->failure);
        done->deferred.Resolve(kept ? Napi::Value(kept->Value()) : env.Undefined());
      } catch (const Error& error) {
        done->deferred.Reject(to_js_error(env, error.code(), error.what()).Value());
      } catch (const std::exception& error) {
        done->deferred.Reject(to_js_error(env, error).Value());
      }
    } catch (...) {
    }
  };
  try {
    stream.wait([pending, bridge = bridge_, settle](std::exception_ptr failure) {
      std::lock_guard lock(bridge->mutex);
      if (bridge->closed) return;
      pending->failure = failure;
      if (bridge->to_js.NonBlockingCall(pending, settle) != napi_ok) bridge->closed = true;
    });
  } catch (...) {
    // The device is lost or closed, so nobody will answer. The result object is leaked on purpose,
    // because copies into it may still be running.
    delete pending;
    throw;
  }
  if (pending_++ == 0) bridge_->to_js.Ref(env);
  return promise;
}

}  // namespace llamaforge

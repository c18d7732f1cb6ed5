// State of one JavaScript environment (main thread or worker thread): its device streams and its way back into JS.
#pragma once

#include <napi.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "runtime/cpu_stream.h"
#include "runtime/plugin.h"
#include "runtime/tensor.h"

namespace llamaforge {

class Environment {
 public:
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  explicit Environment(Napi::Env env);
  ~Environment();

  // The device numbers of JS: 0 is the CPU, 1 + i GPU i, whose plugin is loaded here. Throws ERR_DEVICE.
  const std::shared_ptr<Stream>& stream(int64_t device);
  const OpTable& ops(const Stream& stream) const;
  const LoadedPlugin& cuda() const { return load_plugin(plugin_folders); }
  // Where JS found packages with plugins.
  std::vector<std::string> plugin_folders;
  const char* instruction_set() const { return kernels_.instruction_set; }
  // Threads for the CPU stream; only before its first use.
  void set_threads(int64_t threads);
  int threads() const { return threads_; }

  // A promise of `result` (an object, or undefined), answered when all that `stream` has been given so far has run.
  Napi::Promise when_done(Napi::Env env, Stream& stream, Napi::Value result);

  Napi::FunctionReference tensor_class;
  // Handles that are not disposed. Shared, because handles may be finalised after this object.
  std::shared_ptr<int64_t> live_tensors = std::make_shared<int64_t>(0);

 private:
  struct Pending;
  // Shared with the stream's thread, which may outlive the environment's JS part by a moment.
  struct Bridge {
    std::mutex mutex;
    bool closed = false;
    Napi::ThreadSafeFunction to_js;
  };

  CpuKernels kernels_;
  int threads_;
  std::shared_ptr<Stream> cpu_;
  std::map<int64_t, std::shared_ptr<Stream>> gpus_;  // by device number
  std::shared_ptr<Bridge> bridge_;
  int64_t pending_ = 0;  // promises not answered yet; they keep the process alive
};

// Throws as a JS error with `code`. For use inside bindings only.
Napi::Error to_js_error(Napi::Env env, const std::string& code, const std::string& message);

// Runs a binding's body so that no C++ exception leaves it.
template <class Body> Napi::Value guarded(const Napi::CallbackInfo& info, Body body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& error) {
    throw to_js_error(info.Env(), error.code(), error.what());
  } catch (const std::bad_alloc&) {
    throw to_js_error(info.Env(), "ERR_OUT_OF_MEMORY", "out of host memory");
  } catch (const std::exception& error) {
    throw to_js_error(info.Env(), "ERR_NATIVE", error.what());
  }
}

}  // namespace llamaforge

// State of one JavaScript environment (main thread or worker thread): its device streams and its
// way back into JS.
#pragma once

#include <napi.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "runtime/cpu_stream.h"
#include "runtime/plugin.h"
#include "runtime/tensor.h"

namespace llamaforge {

// State that csrc/napi/comm_wrap.cpp keeps for an environment.
struct CommState;

// Counts the bytes of tensors that no scope owns. If a program forgets such a tensor, only the
// collection of its handle frees it, and V8, which sees small objects, has no reason to collect.
// Every tensor's bytes could be reported to V8 as external memory, but V8 then marks its whole heap
// for each 64 MB, which cost a GPU a fifth of its time. So tensors of scopes are not counted, and a
// collection is requested when the rest has grown by a half, and by 1 GiB at least.
class UnownedMemory {
 public:
  void add(Napi::Env env, int64_t bytes);
  void remove(int64_t bytes);

 private:
  int64_t held_ = 0;
  int64_t low_ = 0;  // the least since a collection was requested
  int in_vain_ = 0;  // requests since bytes were last freed
};

class Environment {
 public:
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  explicit Environment(Napi::Env env);
  ~Environment();

  // Returns the stream of a JS device number: 0 is the CPU, 1 + i is GPU i, whose plugin is loaded
  // here. Throws ERR_DEVICE.
  const std::shared_ptr<Stream>& stream(int64_t device);
  const OpTable& ops(const Stream& stream) const;
  const LoadedPlugin& cuda() const { return load_plugin(plugin_folders); }
  // Folders of the packages with plugins that JS found.
  std::vector<std::string> plugin_folders;
  const char* instruction_set() const { return kernels_.instruction_set; }
  // Sets the threads of the CPU stream; allowed only before its first use.
  void set_threads(int64_t threads);
  int threads() const { return threads_; }

  // Returns a promise of `result` (an object, or undefined), answered when all work that `stream`
  // has been given so far has run.
  Napi::Promise when_done(Napi::Env env, Stream& stream, Napi::Value result);

  // Runs `work` on the JS thread soon, or drops it if the environment ends first. Callable from any
  // thread. `work` must not throw.
  using JsWork = std::function<void(Napi::Env)>;
  class Poster {
   public:
    void operator()(JsWork work) const;

   private:
    friend class Environment;
    struct Bridge;
    explicit Poster(std::shared_ptr<Bridge> bridge) : bridge_(std::move(bridge)) {}
    std::shared_ptr<Bridge> bridge_;
  };
  Poster poster() const { return Poster(bridge_); }

  // Returns a promise that any thread settles, once, with a failure or with the value that `make`
  // creates on the JS thread (null: undefined). The promise keeps the process alive until then.
  using Settle =
      std::function<void(std::exception_ptr failure, std::function<Napi::Value(Napi::Env)> make)>;
  Napi::Promise later(Napi::Env env, Settle& settle);

  // The stretch that is being recorded, if there is one: ops on its stream are added to it instead
  // of being submitted.
  struct Recorder {
    std::shared_ptr<Stream> stream;
    std::shared_ptr<Recording> recording;
  };
  std::optional<Recorder> recorder;
  // Throws ERR_ARGUMENT while a stretch is recorded. For work that a replay could not repeat.
  void refuse_recorded(const char* op) const;

  Napi::FunctionReference tensor_class;
  // JS's constructor as it was at the start, because a script may replace the global one.
  Napi::FunctionReference array_buffer_class;
  std::shared_ptr<CommState> comm;
  // Actions that run first when the environment ends, on the JS thread.
  std::vector<std::function<void()>> before_end;
  // Number of handles that are not disposed. Shared, because handles may be finalised after this
  // object.
  std::shared_ptr<int64_t> live_tensors = std::make_shared<int64_t>(0);
  std::shared_ptr<UnownedMemory> unowned_memory = std::make_shared<UnownedMemory>();

 private:
  struct Pending;
  using Bridge = Poster::Bridge;

  CpuKernels kernels_;
  int threads_;
  std::shared_ptr<Stream> cpu_;
  std::map<int64_t, std::shared_ptr<Stream>> gpus_;  // keyed by device number
  std::shared_ptr<Bridge> bridge_;
  int64_t pending_ = 0;  // promises not answered yet, which keep the process alive
};

// Shared with the streams' threads, which may outlive the environment's JS part by a moment.
struct Environment::Poster::Bridge {
  std::mutex mutex;
  bool closed = false;
  Napi::ThreadSafeFunction to_js;
};

// Creates a JS error with `code`. For use inside bindings only.
Napi::Error to_js_error(Napi::Env env, const std::string& code, const std::string& message);
// Creates a JS error with the matching code: that of the core's own errors, or that of memory or
// threads that the system refused.
Napi::Error to_js_error(Napi::Env env, const std::exception& error);

// Runs a binding's body so that no C++ exception leaves it.
template <class Body>
Napi::Value guarded(const Napi::CallbackInfo& info, Body body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& error) {
    throw to_js_error(info.Env(), error);
  }
}

}  // namespace llamaforge

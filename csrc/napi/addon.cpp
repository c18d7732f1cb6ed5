// The addon's entry: one environment object per JS thread, the tensor class, the ops, files, and
// device functions.
#include <napi.h>
#include <unistd.h>

#include <chrono>

#include "napi/args.h"
#include "napi/comm_wrap.h"
#include "napi/environment.h"
#include "napi/host_memory.h"
#include "napi/io_wrap.h"
#include "napi/op_binding.h"
#include "napi/recording_wrap.h"
#include "napi/tensor_wrap.h"

#ifndef LLAMAFORGE_VERSION
#error "LLAMAFORGE_VERSION is set by the build, from package.json"
#endif

namespace llamaforge {

namespace {

// Milliseconds of the clock that the moments below are read from.
double now_ms() {
  const std::chrono::duration<double, std::milli> now =
      std::chrono::steady_clock::now().time_since_epoch();
  return now.count();
}

Napi::Value clock(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), now_ms());
}

// Returns a promise of the time at which the device reached this point, in milliseconds of clock().
// JS may run later than that, because it first finishes its current turn.
Napi::Value synchronize(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "synchronize");
    Environment& environment = Environment::of(info.Env());
    environment.refuse_recorded("synchronize");
    Stream& stream = *environment.stream(Argument<int64_t>::from(info[0], {"synchronize", 0}));
    Environment::Settle settle;
    const Napi::Promise promise = environment.later(info.Env(), settle);
    try {
      stream.wait([settle](std::exception_ptr failure) {
        const double reached = now_ms();
        settle(failure, [reached](Napi::Env env) { return Napi::Number::New(env, reached); });
      });
    } catch (const std::exception&) {
      settle(std::current_exception(), nullptr);
    }
    return promise;
  });
}

// Reports the time at which the device reached a place, when the last owner releases the mark. The
// owner is the work that marks the place, or the copy after that work.
struct Mark {
  explicit Mark(Environment::Settle settle) : settle(std::move(settle)) {}
  ~Mark() {
    const double reached = now_ms();
    settle(nullptr, [reached](Napi::Env env) { return Napi::Number::New(env, reached); });
  }
  Environment::Settle settle;
  char copied[8];
};

// Returns a promise of the time at which the device reached this point, as synchronize() does, but
// leaves failures to the next wait. After a failure the promise is answered at once, and operations
// are skipped as before.
Napi::Value passed(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "passed");
    Environment& environment = Environment::of(info.Env());
    environment.refuse_recorded("passed");
    const int64_t device = Argument<int64_t>::from(info[0], {"passed", 0});
    Stream& stream = *environment.stream(device);
    Environment::Settle settle;
    const Napi::Promise promise = environment.later(info.Env(), settle);
    auto mark = std::make_shared<Mark>(settle);
    try {
      stream.submit("passed", [mark, on_gpu = device != 0](Stream& stream) {
        if (!on_gpu) return;
        // A GPU only starts submitted work, so a copy to the host holds the mark until the GPU gets
        // there.
        const Scratch scratch(stream, sizeof mark->copied);
        stream.copy_to_host(mark->copied, scratch.as<char>(), sizeof mark->copied, mark);
      });
    } catch (const Error&) {
      // The device is lost or closed; the next operation reports that.
    }
    return promise;
  });
}

// A program should wait once the device is more than kMostBacklog operations behind, and may go on
// at kResumeBacklog. A micro-batch of TinyLlama has about 900 operations, and CUDA's own queue
// takes some 1,024.
constexpr size_t kMostBacklog = 4096, kResumeBacklog = 2048;

// Returns undefined if the device is near enough, otherwise a promise that is answered once it is
// again.
Napi::Value ready(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "ready");
    Environment& environment = Environment::of(info.Env());
    Stream& stream = *environment.stream(Argument<int64_t>::from(info[0], {"ready", 0}));
    if (stream.backlog() <= kMostBacklog) return info.Env().Undefined();
    Environment::Settle settle;
    const Napi::Promise promise = environment.later(info.Env(), settle);
    stream.when_backlog_at_most(kResumeBacklog, [settle] { settle(nullptr, nullptr); });
    return promise;
  });
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "memory");
    Environment& environment = Environment::of(info.Env());
    const MemoryStats stats =
        environment.stream(Argument<int64_t>::from(info[0], {"memory", 0}))->memory();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("tensors",
               Napi::Number::New(info.Env(), static_cast<double>(*environment.live_tensors)));
    result.Set("bytes", Napi::Number::New(info.Env(), static_cast<double>(stats.used)));
    result.Set("peakBytes", Napi::Number::New(info.Env(), static_cast<double>(stats.peak)));
    result.Set("cachedBytes", Napi::Number::New(info.Env(), static_cast<double>(stats.cached)));
    return result;
  });
}

Napi::Value reset_peak(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "resetPeakMemory");
    Environment::of(info.Env())
        .stream(Argument<int64_t>::from(info[0], {"resetPeakMemory", 0}))
        ->reset_peak();
    return info.Env().Undefined();
  });
}

Napi::Value set_memory_limit(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "setMemoryLimit";
    expect_arguments(info, 2, op);
    const int64_t bytes = Argument<int64_t>::from(info[1], {op, 1});
    if (bytes < 0)
      throw Error("ERR_ARGUMENT",
                  format("[{}] expected 0 (no limit) or a number of bytes, got {}", op, bytes));
    Environment::of(info.Env())
        .stream(Argument<int64_t>::from(info[0], {op, 0}))
        ->set_memory_limit(static_cast<uint64_t>(bytes));
    return info.Env().Undefined();
  });
}

Napi::Value set_threads(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "setThreads");
    Environment::of(info.Env()).set_threads(Argument<int64_t>::from(info[0], {"setThreads", 0}));
    return info.Env().Undefined();
  });
}

Napi::Value build_info(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 0, "buildInfo");
    const Environment& environment = Environment::of(info.Env());
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("version", LLAMAFORGE_VERSION);
    result.Set("compiler", __VERSION__);
    result.Set("buildId", build_id());
    result.Set("instructionSet", environment.instruction_set());
    result.Set("threads", Napi::Number::New(info.Env(), environment.threads()));
    Napi::Array majors = Napi::Array::New(info.Env(), std::size(kCudaMajors));
    for (uint32_t i = 0; i < std::size(kCudaMajors); ++i) majors.Set(i, kCudaMajors[i]);
    result.Set("cudaMajors", majors);
    return result;
  });
}

// Ends the process now. exit() would join the threads of libuv's pool, so a read that hangs would
// keep the process forever.
Napi::Value exit_now(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "exitNow";
    expect_arguments(info, 1, op);
    const int64_t code = Argument<int64_t>::from(info[0], {op, 0});
    if (code < 0 || code > 255) bad_argument({op, 0}, "a whole number from 0 to 255", info[0]);
    _exit(static_cast<int>(code));
  });
}

// Sets the folders that may contain a plugin, in addition to the addon's own folder.
Napi::Value set_plugin_folders(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "setPluginFolders";
    expect_arguments(info, 1, op);
    if (!info[0].IsArray()) bad_argument({op, 0}, "an array of strings", info[0]);
    const auto folders = info[0].As<Napi::Array>();
    std::vector<std::string> list;
    for (uint32_t i = 0; i < folders.Length(); ++i)
      list.push_back(Argument<std::string>::from(folders.Get(i), {op, 0}));
    Environment::of(info.Env()).plugin_folders = std::move(list);
    return info.Env().Undefined();
  });
}

// Describes the plugin, the driver, the libraries and the GPUs. Throws ERR_DEVICE if no plugin can
// be loaded.
Napi::Value cuda_info(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 0, "cudaInfo");
    const Napi::Env env = info.Env();
    const LoadedPlugin& loaded = Environment::of(env).cuda();
    Napi::Array devices = Napi::Array::New(env);
    const int count = loaded.plugin->device_count();
    for (int index = 0; index < count; ++index) {
      const GpuDescription gpu = loaded.plugin->describe(index);
      Napi::Object device = Napi::Object::New(env);
      device.Set("name", gpu.name);
      device.Set("capability", format("{}.{}", gpu.major, gpu.minor));
      device.Set("memoryBytes", Napi::Number::New(env, static_cast<double>(gpu.memory_bytes)));
      devices.Set(static_cast<uint32_t>(index), device);
    }
    Napi::Array libraries = Napi::Array::New(env);
    for (const std::string& library : loaded.plugin->libraries())
      libraries.Set(libraries.Length(), library);
    Napi::Object result = Napi::Object::New(env);
    result.Set("plugin", loaded.path);
    result.Set("driver", format("{}.{}", loaded.driver_major, loaded.driver_minor));
    Napi::Array passed_over = Napi::Array::New(env);
    for (const std::string& reason : loaded.passed_over)
      passed_over.Set(passed_over.Length(), reason);
    result.Set("libraries", libraries);
    result.Set("passedOver", passed_over);
    result.Set("devices", devices);
    return result;
  });
}

// Returns the free memory of one GPU in bytes; the process becomes a user of that GPU.
Napi::Value gpu_free_bytes(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "gpuFreeBytes";
    expect_arguments(info, 1, op);
    const int64_t index = Argument<int64_t>::from(info[0], {op, 0});
    if (index < 0 || index > INT32_MAX) bad_argument({op, 0}, "the number of a GPU", info[0]);
    const uint64_t bytes =
        Environment::of(info.Env()).cuda().plugin->free_bytes(static_cast<int>(index));
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  try {
    env.SetInstanceData(new Environment(env));
    TensorWrap::init(env, exports);
    exports.Set("HostMemory", define_host_memory(env));
    Napi::Object ops = Napi::Object::New(env);
    init_ops(env, ops);
    exports.Set("ops", ops);
    init_io(env, exports);
    init_comm(env, exports);
    init_recording(env, exports);
    exports.Set("synchronize", Napi::Function::New(env, synchronize, "synchronize"));
    exports.Set("clock", Napi::Function::New(env, clock, "clock"));
    exports.Set("passed", Napi::Function::New(env, passed, "passed"));
    exports.Set("ready", Napi::Function::New(env, ready, "ready"));
    exports.Set("memory", Napi::Function::New(env, memory, "memory"));
    exports.Set("resetPeakMemory", Napi::Function::New(env, reset_peak, "resetPeakMemory"));
    exports.Set("setMemoryLimit", Napi::Function::New(env, set_memory_limit, "setMemoryLimit"));
    exports.Set("setThreads", Napi::Function::New(env, set_threads, "setThreads"));
    exports.Set("buildInfo", Napi::Function::New(env, build_info, "buildInfo"));
    exports.Set("setPluginFolders",
                Napi::Function::New(env, set_plugin_folders, "setPluginFolders"));
    exports.Set("exitNow", Napi::Function::New(env, exit_now, "exitNow"));
    exports.Set("cudaInfo", Napi::Function::New(env, cuda_info, "cudaInfo"));
    exports.Set("gpuFreeBytes", Napi::Function::New(env, gpu_free_bytes, "gpuFreeBytes"));
  } catch (const Error& error) {
    throw to_js_error(env, error.code(), error.what());
  }
  return exports;
}

}  // namespace

}  // namespace llamaforge

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) {
  return llamaforge::init(env, exports);
}
NODE_API_MODULE(llamaforge, init_addon)

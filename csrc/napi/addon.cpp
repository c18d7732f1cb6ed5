// The addon's entry: one environment object per JS thread, the tensor class, the ops, files, and device functions.
#include <napi.h>

#include "napi/args.h"
#include "napi/environment.h"
#include "napi/io_wrap.h"
#include "napi/op_binding.h"
#include "napi/tensor_wrap.h"

#ifndef LLAMAFORGE_VERSION
#error "LLAMAFORGE_VERSION is set by the build, from package.json"
#endif

namespace llamaforge {

namespace {

void expect_arguments(const Napi::CallbackInfo& info, size_t count, const char* op) {
  if (info.Length() != count) {
    throw Error("ERR_ARGUMENT", format("[{}] expected {} arguments, got {}", op, count, info.Length()));
  }
}

Napi::Value synchronize(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "synchronize");
    Environment& environment = Environment::of(info.Env());
    Stream& stream = *environment.stream(Argument<int64_t>::from(info[0], {"synchronize", 0}));
    return environment.when_done(info.Env(), stream, info.Env().Undefined());
  });
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "memory");
    Environment& environment = Environment::of(info.Env());
    const MemoryStats stats = environment.stream(Argument<int64_t>::from(info[0], {"memory", 0}))->memory();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("tensors", Napi::Number::New(info.Env(), static_cast<double>(*environment.live_tensors)));
    result.Set("bytes", Napi::Number::New(info.Env(), static_cast<double>(stats.used)));
    result.Set("peakBytes", Napi::Number::New(info.Env(), static_cast<double>(stats.peak)));
    result.Set("cachedBytes", Napi::Number::New(info.Env(), static_cast<double>(stats.cached)));
    return result;
  });
}

Napi::Value reset_peak(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 1, "resetPeakMemory");
    Environment::of(info.Env()).stream(Argument<int64_t>::from(info[0], {"resetPeakMemory", 0}))->reset_peak();
    return info.Env().Undefined();
  });
}

Napi::Value set_memory_limit(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "setMemoryLimit";
    expect_arguments(info, 2, op);
    const int64_t bytes = Argument<int64_t>::from(info[1], {op, 1});
    if (bytes < 0) throw Error("ERR_ARGUMENT", format("[{}] expected 0 (no limit) or a number of bytes, got {}", op, bytes));
    Environment::of(info.Env()).stream(Argument<int64_t>::from(info[0], {op, 0}))->set_memory_limit(static_cast<uint64_t>(bytes));
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
    result.Set("instructionSet", environment.instruction_set());
    result.Set("threads", Napi::Number::New(info.Env(), environment.threads()));
    return result;
  });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  try {
    env.SetInstanceData(new Environment(env));
    TensorWrap::init(env, exports);
    Napi::Object ops = Napi::Object::New(env);
    init_ops(env, ops);
    exports.Set("ops", ops);
    init_io(env, exports);
    exports.Set("synchronize", Napi::Function::New(env, synchronize, "synchronize"));
    exports.Set("memory", Napi::Function::New(env, memory, "memory"));
    exports.Set("resetPeakMemory", Napi::Function::New(env, reset_peak, "resetPeakMemory"));
    exports.Set("setMemoryLimit", Napi::Function::New(env, set_memory_limit, "setMemoryLimit"));
    exports.Set("setThreads", Napi::Function::New(env, set_threads, "setThreads"));
    exports.Set("buildInfo", Napi::Function::New(env, build_info, "buildInfo"));
  } catch (const Error& error) {
    throw to_js_error(env, error.code(), error.what());
  }
  return exports;
}

}  // namespace

}  // namespace llamaforge

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) { return llamaforge::init(env, exports); }
NODE_API_MODULE(llamaforge, init_addon)

#include "napi/recording_wrap.h"

#include <memory>
#include <utility>

#include "napi/args.h"
#include "napi/environment.h"

namespace llamaforge {

namespace {

class RecordingWrap : public Napi::ObjectWrap<RecordingWrap> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeRecording",
                       {InstanceMethod<&RecordingWrap::replay>("replay"),
                        InstanceMethod<&RecordingWrap::dispose>("dispose"),
                        InstanceAccessor<&RecordingWrap::length>("length")});
  }

  // Takes the stretch that the environment has recorded.
  explicit RecordingWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RecordingWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      Environment& environment = Environment::of(info.Env());
      if (!environment.recorder)
        throw Error("ERR_ARGUMENT", "[NativeRecording] nothing is being recorded");
      recorded_ = std::move(*environment.recorder);
      environment.recorder.reset();
      return info.Env().Undefined();
    });
  }
  ~RecordingWrap() override { drop(); }

 private:
  Napi::Value replay(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 0, "replay");
      Environment::of(info.Env()).refuse_recorded("replay");
      if (!recorded_.recording)
        throw Error("ERR_DISPOSED", "[replay] the recording has been disposed");
      recorded_.stream->replay(recorded_.recording);
      return info.Env().Undefined();
    });
  }

  Napi::Value dispose(const Napi::CallbackInfo& info) {
    drop();
    return info.Env().Undefined();
  }

  Napi::Value length(const Napi::CallbackInfo& info) {
    const size_t count = recorded_.recording ? recorded_.recording->ops().size() : 0;
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  }

  // The last owner is a work of the stream, because the release of a device's own state may wait. A
  // stream that takes no work any more releases the recording here.
  void drop() {
    if (!recorded_.recording) return;
    Environment::Recorder dropped = std::exchange(recorded_, {});
    try {
      dropped.stream->submit("drop", [recording = std::move(dropped.recording)](Stream&) {});
    } catch (const std::exception&) {
    }
  }

  Environment::Recorder recorded_;
};

Napi::Value begin_recording(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "beginRecording";
    expect_arguments(info, 1, op);
    Environment& environment = Environment::of(info.Env());
    environment.refuse_recorded("record");
    const auto& stream = environment.stream(Argument<int64_t>::from(info[0], {op, 0}));
    environment.recorder.emplace(Environment::Recorder{stream, std::make_shared<Recording>()});
    return info.Env().Undefined();
  });
}

// Forgets what has been recorded so far.
Napi::Value drop_recording(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).recorder.reset();
  return info.Env().Undefined();
}

}  // namespace

void init_recording(Napi::Env env, Napi::Object exports) {
  exports.Set("NativeRecording", RecordingWrap::define(env));
  exports.Set("beginRecording", Napi::Function::New(env, begin_recording, "beginRecording"));
  exports.Set("dropRecording", Napi::Function::New(env, drop_recording, "dropRecording"));
}

}  // namespace llamaforge

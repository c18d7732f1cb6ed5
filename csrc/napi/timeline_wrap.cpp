#include "napi/timeline_wrap.h"

#include "napi/array_buffer.h"
#include "napi/comm_state.h"

namespace llamaforge {

namespace {

constexpr napi_type_tag kTimelineTag = {0x6c6c616d61666f72, 0x67652d74696d656c};

class TimelineWrap final : public Napi::ObjectWrap<TimelineWrap> {
 public:
  explicit TimelineWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TimelineWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      content_ = made_from<TimelineContent>(info, "Timeline");
      napi_type_tag_object(info.Env(), info.This(), &kTimelineTag);
      return info.Env().Undefined();
    });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Timeline",
        {InstanceMethod<&TimelineWrap::mark>("mark"), InstanceMethod<&TimelineWrap::times>("times"),
         InstanceMethod<&TimelineWrap::spans>("spans")});
  }

  static const TimelineContent& content_of(Napi::Value value, Place place) {
    bool tagged = false;
    if (!value.IsObject() ||
        napi_check_object_type_tag(value.Env(), value, &kTimelineTag, &tagged) != napi_ok ||
        !tagged) {
      bad_argument(place, "a timeline or null", value);
    }
    return Unwrap(value.As<Napi::Object>())->content_;
  }

 private:
  Napi::Value mark(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      return Napi::Number::New(info.Env(), static_cast<double>(content_.timeline->mark()));
    });
  }

  Napi::Value times(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      const std::vector<double> times = content_.timeline->times();
      const Napi::ArrayBuffer memory =
          new_array_buffer(info.Env(), "timeline", times.size() * sizeof(double));
      auto array = Napi::Float64Array::New(info.Env(), times.size(), memory, 0);
      std::copy(times.begin(), times.end(), array.Data());
      return array;
    });
  }

  Napi::Value spans(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      const Napi::Env env = info.Env();
      const auto spans = content_.timeline->spans();
      Napi::Array array = Napi::Array::New(env, spans.size());
      for (uint32_t i = 0; i < spans.size(); ++i) {
        const Timeline::Span& span = spans[i];
        Napi::Object one = Napi::Object::New(env);
        one.Set("group", Napi::String::New(env, span.group));
        one.Set("name", Napi::String::New(env, span.name));
        one.Set("bytes", Napi::Number::New(env, static_cast<double>(span.bytes)));
        one.Set("waiting", Napi::Boolean::New(env, span.waiting));
        one.Set("start", Napi::Number::New(env, static_cast<double>(span.start)));
        one.Set("end", Napi::Number::New(env, static_cast<double>(span.end)));
        array.Set(i, one);
      }
      return array;
    });
  }

  TimelineContent content_;
};

}  // namespace

Napi::Function define_timeline(Napi::Env env) { return TimelineWrap::define(env); }

std::shared_ptr<Timeline> timeline_from(Napi::Value value, int64_t device, Place place) {
  if (value.IsNull()) return nullptr;
  const TimelineContent& content = TimelineWrap::content_of(value, place);
  if (content.device != device)
    throw Error("ERR_DEVICE", format("[{}] the timeline is another device's", place.op));
  return content.timeline;
}

}  // namespace llamaforge

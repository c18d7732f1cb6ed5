// The JS class Timeline: see comm_wrap.h.
#pragma once

#include <napi.h>

#include <memory>

#include "napi/args.h"
#include "runtime/timeline.h"

namespace llamaforge {

// Content of a JS Timeline.
struct TimelineContent {
  std::shared_ptr<Timeline> timeline;
  int64_t device;
};

Napi::Function define_timeline(Napi::Env env);
// Returns the timeline of a JS value that is a Timeline of this device, or null for null; throws
// otherwise.
std::shared_ptr<Timeline> timeline_from(Napi::Value value, int64_t device, Place place);

}  // namespace llamaforge

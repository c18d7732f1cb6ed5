// Recording and replaying stretches of ops.
#pragma once

#include <napi.h>

namespace llamaforge {

// Adds beginRecording(device), dropRecording(), and the class NativeRecording, whose constructor
// ends the recording and takes it.
void init_recording(Napi::Env env, Napi::Object exports);

}  // namespace llamaforge

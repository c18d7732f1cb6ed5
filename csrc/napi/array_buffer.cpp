#include "napi/array_buffer.h"

#include "napi/environment.h"

namespace llamaforge {

// Uses JS's constructor, which throws a RangeError where the engine's own function aborts.
Napi::ArrayBuffer new_array_buffer(Napi::Env env, const char* op, size_t bytes) {
  try {
    const Napi::Value size = Napi::Number::New(env, static_cast<double>(bytes));
    return Environment::of(env).array_buffer_class.New({size}).As<Napi::ArrayBuffer>();
  } catch (const Napi::Error&) {
    throw Error("ERR_OUT_OF_MEMORY", format("[{}] the system refused {} bytes on the host for an "
                                            "array: read smaller pieces, or free arrays "
                                            "that are no longer needed",
                                            op, bytes));
  }
}

}  // namespace llamaforge

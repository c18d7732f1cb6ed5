// Strict conversion of JS values to the argument types of ops.def. Nothing is coerced: a wrong
// type, a fraction where a whole number belongs, NaN for an integer or a foreign object is an error
// that names the op and the argument.
#pragma once

#include <napi.h>

#include <cmath>
#include <optional>
#include <string>

#include "napi/tensor_wrap.h"

namespace llamaforge {

// Position of an argument, for error messages.
struct Place {
  const char* op;
  size_t index;
};

inline const char* type_name(Napi::Value value) {
  if (value.IsNull()) return "null";
  switch (value.Type()) {
    case napi_undefined: return "undefined";
    case napi_boolean: return "boolean";
    case napi_number: return "number";
    case napi_string: return "string";
    case napi_symbol: return "symbol";
    case napi_function: return "function";
    case napi_bigint: return "bigint";
    default: return "object";
  }
}

[[noreturn]] inline void bad_argument(Place place, const char* expected, Napi::Value value) {
  std::string got = type_name(value);
  if (value.IsNumber()) got = format("{}", value.As<Napi::Number>().DoubleValue());
  throw Error("ERR_ARGUMENT", format("[{}] expected {} for argument {} but received {}", place.op,
                                     expected, place.index + 1, got));
}

inline void expect_arguments(const Napi::CallbackInfo& info, size_t count, const char* op) {
  if (info.Length() != count) {
    throw Error("ERR_ARGUMENT",
                format("[{}] expected {} arguments, got {}", op, count, info.Length()));
  }
}

template <class T>
struct Argument;

template <>
struct Argument<double> {
  static double from(Napi::Value value, Place place) {
    double number = 0;
    if (napi_get_value_double(value.Env(), value, &number) != napi_ok)
      bad_argument(place, "a number", value);
    return number;
  }
};

template <>
struct Argument<int64_t> {
  static int64_t from(Napi::Value value, Place place) {
    double number = 0;
    if (napi_get_value_double(value.Env(), value, &number) != napi_ok)
      bad_argument(place, "a whole number", value);
    if (!(std::abs(number) <= 9007199254740991.0) || number != std::floor(number)) {
      bad_argument(place, "a whole number within 2^53", value);
    }
    return static_cast<int64_t>(number);
  }
};

template <>
struct Argument<bool> {
  static bool from(Napi::Value value, Place place) {
    if (!value.IsBoolean()) bad_argument(place, "a boolean", value);
    return value.As<Napi::Boolean>().Value();
  }
};

template <>
struct Argument<std::string> {
  static std::string from(Napi::Value value, Place place) {
    if (!value.IsString()) bad_argument(place, "a string", value);
    return value.As<Napi::String>().Utf8Value();
  }
};

template <>
struct Argument<IntList> {
  static IntList from(Napi::Value value, Place place) {
    if (!value.IsArray()) bad_argument(place, "an array of whole numbers", value);
    const auto array = value.As<Napi::Array>();
    if (array.Length() > 64) bad_argument(place, "an array of at most 64 whole numbers", value);
    IntList list;
    for (uint32_t i = 0; i < array.Length(); ++i)
      list.push_back(Argument<int64_t>::from(array.Get(i), place));
    return list;
  }
};

template <class Role>
struct TensorArgument {
  static Role from(Napi::Value value, Place place) {
    TensorWrap* wrap = TensorWrap::unwrap(value.Env(), value);
    if (!wrap) bad_argument(place, "a tensor", value);
    if (wrap->disposed()) {
      throw Error("ERR_DISPOSED",
                  format("[{}] argument {} has been disposed", place.op, place.index + 1));
    }
    return Role{wrap->tensor()};
  }
};
template <>
struct Argument<In> : TensorArgument<In> {};
template <>
struct Argument<Out> : TensorArgument<Out> {};
template <>
struct Argument<InOut> : TensorArgument<InOut> {};

template <class Role>
struct Argument<std::optional<Role>> {
  static std::optional<Role> from(Napi::Value value, Place place) {
    if (value.IsNull()) return std::nullopt;
    return Argument<Role>::from(value, place);
  }
};

// A typed array whose memory can be copied now: it is neither detached nor shared.
struct ArrayBytes {
  const void* data;
  size_t bytes;
  napi_typedarray_type type;
  // Asks the engine instead of reading the object's properties, which a script can redefine.
  static ArrayBytes from(Napi::Value value, Place place) {
    if (!value.IsTypedArray()) bad_argument(place, "a typed array", value);
    napi_env env = value.Env();
    napi_typedarray_type type;
    size_t length = 0;
    void* data = nullptr;
    napi_value buffer = nullptr;
    if (napi_get_typedarray_info(env, value, &type, &length, &data, &buffer, nullptr) != napi_ok) {
      bad_argument(place, "a typed array", value);
    }
    bool owned = false;
    bool detached = false;
    if (napi_is_arraybuffer(env, buffer, &owned) != napi_ok || !owned) {
      bad_argument(place, "a typed array over an ArrayBuffer that is not shared", value);
    }
    if (napi_is_detached_arraybuffer(env, buffer, &detached) != napi_ok || detached) {
      bad_argument(place, "a typed array that is not detached", value);
    }
    return {data, length * value.As<Napi::TypedArray>().ElementSize(), type};
  }
  static ArrayBytes of_uint8(Napi::Value value, Place place) {
    const ArrayBytes array = from(value, place);
    if (array.type != napi_uint8_array) bad_argument(place, "a Uint8Array", value);
    return array;
  }
};

}  // namespace llamaforge

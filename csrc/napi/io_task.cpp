#include "napi/io_task.h"

#include "io/file_error.h"

namespace llamaforge {

std::string path_from(Napi::Value value, Place place) {
  std::string path = Argument<std::string>::from(value, place);
  if (path.empty() || path.find('\0') != std::string::npos) {
    bad_argument(place, "a path that is not empty and holds no NUL", value);
  }
  return path;
}

uint64_t count_from(Napi::Value value, Place place) {
  const int64_t count = Argument<int64_t>::from(value, place);
  if (count < 0) bad_argument(place, "a whole number that is not negative", value);
  return static_cast<uint64_t>(count);
}

Napi::Value js_error(Napi::Env env, std::exception_ptr failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const io::SystemError& error) {
    // The fields that Node's own file errors have.
    Napi::Error result = to_js_error(env, error.code(), error.what());
    result.Set("errno", Napi::Number::New(env, -error.error()));
    result.Set("syscall", Napi::String::New(env, error.call()));
    result.Set("path", Napi::String::New(env, error.path()));
    return result.Value();
  } catch (const std::exception& error) {
    return to_js_error(env, error).Value();
  } catch (...) {
    return to_js_error(env, "ERR_NATIVE", "unknown failure").Value();
  }
}

Finish digest(uint64_t bytes, std::string sha256) {
  return [bytes, sha256 = std::move(sha256)](Napi::Env env) -> Napi::Value {
    Napi::Object result = Napi::Object::New(env);
    result.Set("bytes", Napi::Number::New(env, static_cast<double>(bytes)));
    result.Set("sha256", Napi::String::New(env, sha256));
    return result;
  };
}

}  // namespace llamaforge

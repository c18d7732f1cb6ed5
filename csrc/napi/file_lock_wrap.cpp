#include "napi/file_lock_wrap.h"

#include <memory>

#include "io/file_lock.h"
#include "napi/environment.h"
#include "napi/io_task.h"

namespace llamaforge {

namespace {

// The JS class FileLock. The constructor locks; the lock lasts until release() or the end of the
// process. A program that drops the last reference loses the lock at the next garbage collection.
class FileLockWrap : public Napi::ObjectWrap<FileLockWrap> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "FileLock",
                       {InstanceMethod<&FileLockWrap::write>("write"),
                        InstanceMethod<&FileLockWrap::release>("release")});
  }

  explicit FileLockWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<FileLockWrap>(info) {
    locally(info, [&] {
      expect_arguments(info, 1, "FileLock");
      lock_ = std::make_unique<io::FileLock>(path_from(info[0], {"FileLock", 0}));
    });
  }

 private:
  // Works as `guarded`, but adds the fields of a system error.
  template <class Body>
  Napi::Value locally(const Napi::CallbackInfo& info, Body body) {
    return guarded(info, [&]() -> Napi::Value {
      try {
        body();
      } catch (const io::SystemError&) {
        throw Napi::Error(info.Env(), js_error(info.Env(), std::current_exception()));
      }
      return info.Env().Undefined();
    });
  }

  Napi::Value write(const Napi::CallbackInfo& info) {
    return locally(info, [&] {
      expect_arguments(info, 1, "write");
      const std::string text = Argument<std::string>::from(info[0], {"write", 0});
      if (lock_ == nullptr) throw Error("ERR_ARGUMENT", "[write] the lock has been released");
      lock_->write(text);
    });
  }

  Napi::Value release(const Napi::CallbackInfo& info) {
    return locally(info, [&] {
      expect_arguments(info, 0, "release");
      lock_.reset();
    });
  }

  std::unique_ptr<io::FileLock> lock_;
};

}  // namespace

Napi::Function define_file_lock(Napi::Env env) { return FileLockWrap::define(env); }

}  // namespace llamaforge

#include "napi/durable_file_wrap.h"

#include <memory>

#include "io/durable_file.h"
#include "napi/environment.h"
#include "napi/io_task.h"

namespace llamaforge {

namespace {

// Copies the bytes of a Uint8Array, because the caller may change or detach it while the pool
// writes.
std::shared_ptr<std::vector<char>> copy_from(Napi::Value value, Place place) {
  const ArrayBytes array = ArrayBytes::of_uint8(value, place);
  if (array.bytes > kLargestPiece)
    bad_argument(place, "a Uint8Array of at most 16777216 bytes", value);
  const auto* start = static_cast<const char*>(array.data);
  return std::make_shared<std::vector<char>>(start, start + array.bytes);
}

// The JS class DurableFile. It runs one operation at a time: a second one while the first runs is
// an error, not a race.
class DurableFileWrap : public Napi::ObjectWrap<DurableFileWrap> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "DurableFile",
                       {InstanceMethod<&DurableFileWrap::open>("open"),
                        InstanceMethod<&DurableFileWrap::write>("write"),
                        InstanceMethod<&DurableFileWrap::finish>("finish"),
                        InstanceMethod<&DurableFileWrap::abandon>("abandon")});
  }

  explicit DurableFileWrap(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<DurableFileWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "DurableFile");
      state_->path = path_from(info[0], {"DurableFile", 0});
      return info.Env().Undefined();
    });
  }

 private:
  // Shared with the running operation, which may outlive the JS object.
  struct State {
    std::string path;
    std::unique_ptr<io::DurableFile> file;
    bool opened = false;
    bool busy = false;
  };

  Napi::Value start(const Napi::CallbackInfo& info, const char* op,
                    std::function<Finish(State&)> work) {
    if (state_->busy)
      throw Error("ERR_ARGUMENT",
                  format("[{}] {} is busy: await the call before", op, state_->path));
    state_->busy = true;
    auto state = state_;
    try {
      return Task::start(
          info.Env(), [state, work = std::move(work)] { return work(*state); },
          [state] { state->busy = false; });
    } catch (...) {
      state->busy = false;
      throw;
    }
  }

  void expect_open(const char* op) const {
    if (!state_->busy && state_->file == nullptr) {
      throw Error("ERR_ARGUMENT", format("[{}] {} is not open", op, state_->path));
    }
  }

  Napi::Value open(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 0, "open");
      if (state_->opened)
        throw Error("ERR_ARGUMENT", format("[open] {} has been opened before", state_->path));
      Napi::Value promise = start(info, "open", [](State& state) -> Finish {
        state.file = std::make_unique<io::DurableFile>(state.path);
        return nullptr;
      });
      state_->opened = true;
      return promise;
    });
  }

  Napi::Value write(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "write");
      auto bytes = copy_from(info[0], {"write", 0});
      expect_open("write");
      return start(info, "write", [bytes](State& state) -> Finish {
        state.file->write(bytes->data(), bytes->size());
        return nullptr;
      });
    });
  }

  Napi::Value finish(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 0, "finish");
      expect_open("finish");
      return start(info, "finish", [](State& state) -> Finish {
        const std::unique_ptr<io::DurableFile> file = std::move(state.file);
        std::string sha256 = file->finish();
        return digest(file->bytes(), std::move(sha256));
      });
    });
  }

  // Closes the file without fsync if it is open. For cleaning up after an error.
  Napi::Value abandon(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 0, "abandon");
      return start(info, "abandon", [](State& state) -> Finish {
        state.file.reset();
        return nullptr;
      });
    });
  }

  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace

Napi::Function define_durable_file(Napi::Env env) { return DurableFileWrap::define(env); }

}  // namespace llamaforge

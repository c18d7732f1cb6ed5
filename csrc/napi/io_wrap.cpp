#include "napi/io_wrap.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>

#include "io/durable_file.h"
#include "io/file_lock.h"
#include "io/regular_file.h"
#include "io/safetensors.h"
#include "io/tensor_reader.h"
#include "napi/args.h"
#include "napi/environment.h"

namespace llamaforge {

namespace {

// One call's worth of bytes: copying them on the JS thread takes about a millisecond.
constexpr size_t kLargestPiece = size_t{16} << 20;
constexpr size_t kHashBlock = size_t{1} << 20;

void expect_arguments(const Napi::CallbackInfo& info, size_t count, const char* op) {
  if (info.Length() != count) {
    throw Error("ERR_ARGUMENT", format("[{}] expected {} arguments, got {}", op, count, info.Length()));
  }
}

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
    // The fields of Node's own file errors.
    Napi::Error result = to_js_error(env, error.code(), error.what());
    result.Set("errno", Napi::Number::New(env, -error.error()));
    result.Set("syscall", Napi::String::New(env, error.call()));
    result.Set("path", Napi::String::New(env, error.path()));
    return result.Value();
  } catch (const Error& error) {
    return to_js_error(env, error.code(), error.what()).Value();
  } catch (const std::bad_alloc&) {
    return to_js_error(env, "ERR_OUT_OF_MEMORY", "out of host memory").Value();
  } catch (const std::exception& error) {
    return to_js_error(env, "ERR_NATIVE", error.what()).Value();
  } catch (...) {
    return to_js_error(env, "ERR_NATIVE", "unknown failure").Value();
  }
}

// Runs `work` on the pool; what it returns makes the promise's value on the JS thread. `settled` runs there first.
using Finish = std::function<Napi::Value(Napi::Env)>;

class Task final : public Napi::AsyncWorker {
 public:
  static Napi::Value start(Napi::Env env, std::function<Finish()> work, std::function<void()> settled = nullptr) {
    auto* task = new Task(env, std::move(work), std::move(settled));
    const Napi::Promise promise = task->deferred_.Promise();
    task->Queue();  // deletes itself when it has answered
    return promise;
  }

 private:
  Task(Napi::Env env, std::function<Finish()> work, std::function<void()> settled)
      : Napi::AsyncWorker(env, "llamaforge.io"),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        settled_(std::move(settled)) {}

  void Execute() override {
    try {
      finish_ = work_();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  // In a worker thread that is being terminated every call into JS fails, settling the promise and even the error about
  // it. Nobody is left to be told, and an exception that left this function would end the process.
  void OnOK() override {
    if (settled_) settled_();
    try {
      answer();
    } catch (...) {
    }
  }

  void answer() {
    if (!failure_) {
      try {
        deferred_.Resolve(finish_ ? finish_(Env()) : Env().Undefined());
        return;
      } catch (const Napi::Error& error) {
        deferred_.Reject(error.Value());
        return;
      } catch (...) {
        failure_ = std::current_exception();
      }
    }
    deferred_.Reject(js_error(Env(), failure_));
  }

  Napi::Promise::Deferred deferred_;
  std::function<Finish()> work_;
  std::function<void()> settled_;
  Finish finish_;
  std::exception_ptr failure_;
};

void expect_identity(const io::RegularFile& file, const std::string& identity) {
  if (!identity.empty() && file.identity() != identity) {
    throw io::FormatError(file.path() + " was replaced or changed after its header was read");
  }
}

Napi::Value header_to_js(Napi::Env env, const io::SafetensorsHeader& header) {
  auto number = [env](uint64_t value) { return Napi::Number::New(env, static_cast<double>(value)); };
  Napi::Array entries = Napi::Array::New(env, header.entries.size());
  uint32_t index = 0;
  for (const io::TensorEntry& entry : header.entries) {
    Napi::HandleScope scope(env);
    Napi::Array shape = Napi::Array::New(env, entry.shape.size());
    for (uint32_t axis = 0; axis < entry.shape.size(); ++axis) {
      shape.Set(axis, number(static_cast<uint64_t>(entry.shape[axis])));
    }
    Napi::Object object = Napi::Object::New(env);
    object.Set("name", Napi::String::New(env, entry.name));
    object.Set("dtype", Napi::String::New(env, entry.dtype->name.data(), entry.dtype->name.size()));
    object.Set("shape", shape);
    object.Set("begin", number(entry.begin));
    object.Set("end", number(entry.end));
    entries.Set(index++, object);
  }
  Napi::Array metadata = Napi::Array::New(env, header.metadata.size());
  index = 0;
  for (const auto& [key, value] : header.metadata) {
    Napi::HandleScope scope(env);
    Napi::Array pair = Napi::Array::New(env, 2);
    pair.Set(0u, Napi::String::New(env, key));
    pair.Set(1u, Napi::String::New(env, value));
    metadata.Set(index++, pair);
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("dataOffset", number(header.data_offset));
  result.Set("identity", Napi::String::New(env, header.identity));
  result.Set("entries", entries);
  result.Set("metadata", metadata);
  return result;
}

Napi::Value parse_safetensors_header(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "parseSafetensorsHeader";
    expect_arguments(info, 2, op);
    std::string path = path_from(info[0], {op, 0});
    io::SafetensorsLimits limits;
    limits.header_bytes = count_from(info[1], {op, 1});
    return Task::start(info.Env(), [path, limits]() -> Finish {
      auto header = std::make_shared<io::SafetensorsHeader>(
          io::read_safetensors_header(io::RegularFile(path), limits));
      return [header](Napi::Env env) { return header_to_js(env, *header); };
    });
  });
}

Napi::Array array_from(Napi::Value value, Place place) {
  if (!value.IsArray()) bad_argument(place, "an array", value);
  return value.As<Napi::Array>();
}

Napi::Value format_safetensors_header(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "formatSafetensorsHeader";
    expect_arguments(info, 4, op);
    const Napi::Array names = array_from(info[0], {op, 0});
    const Napi::Array dtypes = array_from(info[1], {op, 1});
    const Napi::Array shapes = array_from(info[2], {op, 2});
    const Napi::Array pairs = array_from(info[3], {op, 3});
    if (dtypes.Length() != names.Length() || shapes.Length() != names.Length()) {
      throw Error("ERR_ARGUMENT", format("[{}] {} names, {} dtypes and {} shapes", op, names.Length(), dtypes.Length(), shapes.Length()));
    }
    std::vector<io::TensorEntry> entries(names.Length());
    for (uint32_t i = 0; i < entries.size(); ++i) {
      Napi::HandleScope scope(info.Env());
      entries[i].name = Argument<std::string>::from(names.Get(i), {op, 0});
      const std::string dtype = Argument<std::string>::from(dtypes.Get(i), {op, 1});
      entries[i].dtype = io::find_file_dtype(dtype);
      if (entries[i].dtype == nullptr) throw Error("ERR_DTYPE", format("[{}] unknown dtype \"{}\"", op, dtype));
      entries[i].shape = Argument<IntList>::from(shapes.Get(i), {op, 2});
    }
    std::vector<std::pair<std::string, std::string>> metadata(pairs.Length());
    for (uint32_t i = 0; i < metadata.size(); ++i) {
      Napi::HandleScope scope(info.Env());
      const Napi::Array pair = array_from(pairs.Get(i), {op, 3});
      metadata[i] = {Argument<std::string>::from(pair.Get(0u), {op, 3}), Argument<std::string>::from(pair.Get(1u), {op, 3})};
    }
    const std::string header = io::format_safetensors_header(entries, metadata);
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(info.Env(), header.size());
    std::memcpy(buffer.Data(), header.data(), header.size());
    return buffer;
  });
}

Napi::Value read_tensor(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "readTensor";
    expect_arguments(info, 6, op);
    std::string path = path_from(info[0], {op, 0});
    std::string identity = Argument<std::string>::from(info[1], {op, 1});
    const uint64_t offset = count_from(info[2], {op, 2});
    const uint64_t bytes = count_from(info[3], {op, 3});
    const std::string dtype_name = Argument<std::string>::from(info[4], {op, 4});
    const Out target = Argument<Out>::from(info[5], {op, 5});
    const io::FileDtype* dtype = io::find_file_dtype(dtype_name);
    if (dtype == nullptr || !io::is_convertible(dtype->name, target.dtype)) {
      throw Error("ERR_DTYPE", format("[{}] a tensor of {} cannot be read as {}", op, dtype_name, name_of(target.dtype)));
    }
    const uint64_t wanted = static_cast<uint64_t>(target.numel()) * dtype->bytes;
    if (wanted != bytes) {
      throw Error("ERR_SHAPE", format("[{}] {} of {} needs {} bytes, the file has {}", op, to_string(target.shape), dtype_name, wanted, bytes));
    }
    target.storage->stream().submit(op, [=](Stream& stream) {
      const io::RegularFile file(path);
      expect_identity(file, identity);
      target.storage->allocate();
      io::read_tensor(stream, file, offset, dtype->name, target);
    });
    return info.Env().Undefined();
  });
}

Napi::Value read_bytes(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "readBytes";
    expect_arguments(info, 4, op);
    std::string path = path_from(info[0], {op, 0});
    std::string identity = Argument<std::string>::from(info[1], {op, 1});
    const uint64_t offset = count_from(info[2], {op, 2});
    const uint64_t bytes = count_from(info[3], {op, 3});
    if (bytes > kLargestPiece) bad_argument({op, 3}, "at most 16777216 bytes", info[3]);
    return Task::start(info.Env(), [=]() -> Finish {
      const io::RegularFile file(path);
      expect_identity(file, identity);
      auto data = std::make_shared<std::vector<char>>(bytes);
      file.read(offset, data->data(), bytes);
      if (!identity.empty()) file.check_unchanged();
      return [data](Napi::Env env) -> Napi::Value {
        Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, data->size());
        if (!data->empty()) std::memcpy(buffer.Data(), data->data(), data->size());
        return buffer;
      };
    });
  });
}

Finish digest(uint64_t bytes, std::string sha256) {
  return [bytes, sha256 = std::move(sha256)](Napi::Env env) -> Napi::Value {
    Napi::Object result = Napi::Object::New(env);
    result.Set("bytes", Napi::Number::New(env, static_cast<double>(bytes)));
    result.Set("sha256", Napi::String::New(env, sha256));
    return result;
  };
}

Napi::Value hash_file(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "hashFile";
    expect_arguments(info, 1, op);
    return Task::start(info.Env(), [path = path_from(info[0], {op, 0})]() -> Finish {
      const io::RegularFile file(path);
      std::vector<char> block(kHashBlock);
      io::Sha256 hash;
      for (uint64_t done = 0; done < file.size();) {
        const size_t now = static_cast<size_t>(std::min<uint64_t>(block.size(), file.size() - done));
        file.read(done, block.data(), now);
        hash.update(block.data(), now);
        done += now;
      }
      file.check_unchanged();
      return digest(file.size(), hash.finish());
    });
  });
}

Napi::Value sync_directory(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "syncDirectory";
    expect_arguments(info, 1, op);
    return Task::start(info.Env(), [path = path_from(info[0], {op, 0})]() -> Finish {
      io::sync_directory(path);
      return nullptr;
    });
  });
}

Napi::Value with_two_paths(const Napi::CallbackInfo& info, const char* op, void (*action)(const std::string&, const std::string&)) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 2, op);
    return Task::start(info.Env(), [action, one = path_from(info[0], {op, 0}), two = path_from(info[1], {op, 1})]() -> Finish {
      action(one, two);
      return nullptr;
    });
  });
}

Napi::Value rename_path(const Napi::CallbackInfo& info) {
  return with_two_paths(info, "renamePath", io::rename_path);
}

Napi::Value exchange_paths(const Napi::CallbackInfo& info) {
  return with_two_paths(info, "exchangePaths", io::exchange_paths);
}

// The bytes of a Uint8Array, copied: the caller may change or detach it while the pool writes. Asked of N-API and not of
// the object, whose `buffer` and `length` a script can redefine.
std::shared_ptr<std::vector<char>> copy_from(Napi::Value value, Place place) {
  if (!value.IsTypedArray()) bad_argument(place, "a Uint8Array", value);
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  napi_value buffer;
  if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, &buffer, nullptr) != napi_ok || type != napi_uint8_array) {
    bad_argument(place, "a Uint8Array", value);
  }
  bool plain = false;
  bool detached = true;
  if (napi_is_arraybuffer(value.Env(), buffer, &plain) != napi_ok || !plain) {
    bad_argument(place, "a Uint8Array whose memory is not shared", value);
  }
  if (napi_is_detached_arraybuffer(value.Env(), buffer, &detached) != napi_ok || detached) {
    bad_argument(place, "a Uint8Array that is not detached", value);
  }
  if (length > kLargestPiece) bad_argument(place, "a Uint8Array of at most 16777216 bytes", value);
  const auto* start = static_cast<const char*>(data);
  return std::make_shared<std::vector<char>>(start, start + length);
}

// The JS class DurableFile. One operation at a time: a second one while the first runs is an error, not a race.
class DurableFileWrap : public Napi::ObjectWrap<DurableFileWrap> {
 public:
  static void init(Napi::Env env, Napi::Object io) {
    io.Set("DurableFile", DefineClass(env, "DurableFile",
                                      {InstanceMethod<&DurableFileWrap::open>("open"),
                                       InstanceMethod<&DurableFileWrap::write>("write"),
                                       InstanceMethod<&DurableFileWrap::finish>("finish"),
                                       InstanceMethod<&DurableFileWrap::abandon>("abandon")}));
  }

  explicit DurableFileWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DurableFileWrap>(info) {
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

  Napi::Value start(const Napi::CallbackInfo& info, const char* op, std::function<Finish(State&)> work) {
    if (state_->busy) throw Error("ERR_ARGUMENT", format("[{}] {} is busy: await the call before", op, state_->path));
    state_->busy = true;
    auto state = state_;
    try {
      return Task::start(info.Env(), [state, work = std::move(work)] { return work(*state); }, [state] { state->busy = false; });
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
      if (state_->opened) throw Error("ERR_ARGUMENT", format("[open] {} has been opened before", state_->path));
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

  // Closes without fsync, if open. For the way out after an error.
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

// The JS class FileLock: locked by its constructor, until release() or the end of the process. Whoever drops the last
// reference drops the lock at the next garbage collection.
class FileLockWrap : public Napi::ObjectWrap<FileLockWrap> {
 public:
  static void init(Napi::Env env, Napi::Object io) {
    io.Set("FileLock", DefineClass(env, "FileLock",
                                   {InstanceMethod<&FileLockWrap::write>("write"),
                                    InstanceMethod<&FileLockWrap::release>("release")}));
  }

  explicit FileLockWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<FileLockWrap>(info) {
    locally(info, [&] {
      expect_arguments(info, 1, "FileLock");
      lock_ = std::make_unique<io::FileLock>(path_from(info[0], {"FileLock", 0}));
    });
  }

 private:
  // As `guarded`, but with the fields of a system error.
  template <class Body> Napi::Value locally(const Napi::CallbackInfo& info, Body body) {
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

void init_io(Napi::Env env, Napi::Object exports) {
  Napi::Object io = Napi::Object::New(env);
  auto add = [&](const char* name, Napi::Value (*function)(const Napi::CallbackInfo&)) {
    io.Set(name, Napi::Function::New(env, function, name));
  };
  add("parseSafetensorsHeader", parse_safetensors_header);
  add("formatSafetensorsHeader", format_safetensors_header);
  add("readTensor", read_tensor);
  add("readBytes", read_bytes);
  add("hashFile", hash_file);
  add("syncDirectory", sync_directory);
  add("renamePath", rename_path);
  add("exchangePaths", exchange_paths);
  DurableFileWrap::init(env, io);
  FileLockWrap::init(env, io);
  exports.Set("io", io);
}

}  // namespace llamaforge

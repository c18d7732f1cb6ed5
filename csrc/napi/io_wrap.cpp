#include "napi/io_wrap.h"

#include <algorithm>

#include "io/durable_file.h"
#include "io/regular_file.h"
#include "napi/durable_file_wrap.h"
#include "napi/environment.h"
#include "napi/file_lock_wrap.h"
#include "napi/io_task.h"
#include "napi/safetensors_wrap.h"

namespace llamaforge {

namespace {

constexpr size_t kHashBlock = size_t{1} << 20;

Napi::Value hash_file(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "hashFile";
    expect_arguments(info, 1, op);
    return Task::start(info.Env(), [path = path_from(info[0], {op, 0})]() -> Finish {
      const io::RegularFile file(path);
      std::vector<char> block(kHashBlock);
      io::Sha256 hash;
      for (uint64_t done = 0; done < file.size();) {
        const size_t now =
            static_cast<size_t>(std::min<uint64_t>(block.size(), file.size() - done));
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

Napi::Value with_two_paths(const Napi::CallbackInfo& info, const char* op,
                           void (*action)(const std::string&, const std::string&)) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 2, op);
    return Task::start(
        info.Env(),
        [action, one = path_from(info[0], {op, 0}), two = path_from(info[1], {op, 1})]() -> Finish {
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
  io.Set("DurableFile", define_durable_file(env));
  io.Set("FileLock", define_file_lock(env));
  exports.Set("io", io);
}

}  // namespace llamaforge

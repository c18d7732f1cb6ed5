#include "napi/safetensors_wrap.h"

#include <cstring>
#include <memory>

#include "io/regular_file.h"
#include "io/safetensors.h"
#include "io/tensor_reader.h"
#include "napi/array_buffer.h"
#include "napi/environment.h"
#include "napi/io_task.h"

namespace llamaforge {

namespace {

void expect_identity(const io::RegularFile& file, const std::string& identity) {
  if (!identity.empty() && file.identity() != identity) {
    throw io::FormatError(file.path() + " was replaced or changed after its header was read");
  }
}

Napi::Value header_to_js(Napi::Env env, const io::SafetensorsHeader& header) {
  auto number = [env](uint64_t value) {
    return Napi::Number::New(env, static_cast<double>(value));
  };
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

io::Values values_from(Napi::Value value, Place place) {
  const std::string word = Argument<std::string>::from(value, place);
  if (word == "any") return io::Values::any;
  if (word == "finite") return io::Values::finite;
  if (word == "finite, not negative") return io::Values::finite_and_not_negative;
  bad_argument(place, "any, finite, or finite, not negative", value);
}

Napi::Array array_from(Napi::Value value, Place place) {
  if (!value.IsArray()) bad_argument(place, "an array", value);
  return value.As<Napi::Array>();
}

}  // namespace

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

Napi::Value format_safetensors_header(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "formatSafetensorsHeader";
    expect_arguments(info, 4, op);
    const Napi::Array names = array_from(info[0], {op, 0});
    const Napi::Array dtypes = array_from(info[1], {op, 1});
    const Napi::Array shapes = array_from(info[2], {op, 2});
    const Napi::Array pairs = array_from(info[3], {op, 3});
    if (dtypes.Length() != names.Length() || shapes.Length() != names.Length()) {
      throw Error("ERR_ARGUMENT", format("[{}] {} names, {} dtypes and {} shapes", op,
                                         names.Length(), dtypes.Length(), shapes.Length()));
    }
    std::vector<io::TensorEntry> entries(names.Length());
    for (uint32_t i = 0; i < entries.size(); ++i) {
      Napi::HandleScope scope(info.Env());
      entries[i].name = Argument<std::string>::from(names.Get(i), {op, 0});
      const std::string dtype = Argument<std::string>::from(dtypes.Get(i), {op, 1});
      entries[i].dtype = io::find_file_dtype(dtype);
      if (entries[i].dtype == nullptr)
        throw Error("ERR_DTYPE", format("[{}] unknown dtype \"{}\"", op, dtype));
      entries[i].shape = Argument<IntList>::from(shapes.Get(i), {op, 2});
    }
    std::vector<std::pair<std::string, std::string>> metadata(pairs.Length());
    for (uint32_t i = 0; i < metadata.size(); ++i) {
      Napi::HandleScope scope(info.Env());
      const Napi::Array pair = array_from(pairs.Get(i), {op, 3});
      metadata[i] = {Argument<std::string>::from(pair.Get(0u), {op, 3}),
                     Argument<std::string>::from(pair.Get(1u), {op, 3})};
    }
    const std::string header = io::format_safetensors_header(entries, metadata);
    Napi::ArrayBuffer buffer = new_array_buffer(info.Env(), op, header.size());
    std::memcpy(buffer.Data(), header.data(), header.size());
    return buffer;
  });
}

Napi::Value read_tensor(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "readTensor";
    expect_arguments(info, 8, op);
    std::string path = path_from(info[0], {op, 0});
    std::string identity = Argument<std::string>::from(info[1], {op, 1});
    const uint64_t offset = count_from(info[2], {op, 2});
    const uint64_t bytes = count_from(info[3], {op, 3});
    const std::string dtype_name = Argument<std::string>::from(info[4], {op, 4});
    const Out target = Argument<Out>::from(info[5], {op, 5});
    std::string name = Argument<std::string>::from(info[6], {op, 6});
    const io::Values values = values_from(info[7], {op, 7});
    const io::FileDtype* dtype = io::find_file_dtype(dtype_name);
    if (dtype == nullptr || !io::is_convertible(dtype->name, target.dtype)) {
      throw Error("ERR_DTYPE", format("[{}] a tensor of {} cannot be read as {}", op, dtype_name,
                                      name_of(target.dtype)));
    }
    const uint64_t wanted = static_cast<uint64_t>(target.numel()) * dtype->bytes;
    if (wanted != bytes) {
      throw Error("ERR_SHAPE", format("[{}] {} of {} needs {} bytes, the file has {}", op,
                                      to_string(target.shape), dtype_name, wanted, bytes));
    }
    target.storage->stream().submit(op, [=](Stream& stream) {
      const io::RegularFile file(path);
      expect_identity(file, identity);
      Fresh<1> output;
      output.allocate(*target.storage);
      io::read_tensor(stream, file, offset, dtype->name, target, values, name);
      output.done();
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
        Napi::ArrayBuffer buffer = new_array_buffer(env, op, data->size());
        if (!data->empty()) std::memcpy(buffer.Data(), data->data(), data->size());
        return buffer;
      };
    });
  });
}

}  // namespace llamaforge

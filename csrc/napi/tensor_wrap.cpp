#include "napi/tensor_wrap.h"

#include <cstring>
#include <unordered_set>

#include "napi/args.h"
#include "napi/array_buffer.h"
#include "napi/host_memory.h"

namespace llamaforge {

namespace {

// The tensors of this thread's JS environment. A wrapped pointer is a tensor of ours if it is in
// this set. A lookup here takes a tenth of the time of checking an object's type tag, and an
// operation unwraps some five tensors.
thread_local std::unordered_set<const void*> known_tensors;

// Returns a promise that rejects at this point of the stream: with the stream's failure if there is
// one, because it came first, else with `ours`.
Napi::Value rejected_when_done(Napi::Env env, Stream& stream, std::exception_ptr ours) {
  Environment::Settle settle;
  const Napi::Promise promise = Environment::of(env).later(env, settle);
  try {
    stream.wait(
        [settle, ours](std::exception_ptr failure) { settle(failure ? failure : ours, nullptr); });
  } catch (const std::exception&) {
    settle(std::current_exception(), nullptr);
  }
  return promise;
}

DType dtype_from(const std::string& name, const char* op) {
  for (DType dtype : {DType::f32, DType::bf16, DType::i32, DType::f8e4m3, DType::f8e5m2}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw Error("ERR_DTYPE", format("[{}] expected dtype f32, bf16 or i32, got \"{}\"", op, name));
}

Shape shape_from(Napi::Value value, Place place) {
  Shape shape = Argument<IntList>::from(value, place);
  if (shape.size() > 8)
    throw Error("ERR_SHAPE", format("[{}] at most 8 axes, got {}", place.op, shape.size()));
  // 2^47 elements is beyond any machine and keeps every byte count far from overflow.
  int64_t count = 1;
  for (int64_t size : shape) {
    if (size < 1)
      throw Error("ERR_SHAPE", format("[{}] every axis needs at least one element, got {}",
                                      place.op, to_string(shape)));
    if (size > (int64_t{1} << 47) / count)
      throw Error("ERR_SHAPE", format("[{}] shape {} is too large", place.op, to_string(shape)));
    count *= size;
  }
  return shape;
}

}  // namespace

void TensorWrap::init(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(
      env, "NativeTensor",
      {InstanceMethod<&TensorWrap::view>("view"), InstanceMethod<&TensorWrap::bits>("bits"),
       InstanceMethod<&TensorWrap::set_unowned>("setUnowned"),
       InstanceMethod<&TensorWrap::dispose>("dispose"), InstanceMethod<&TensorWrap::write>("write"),
       InstanceMethod<&TensorWrap::read>("read"),
       InstanceMethod<&TensorWrap::read_into>("readInto")});
  Environment::of(env).tensor_class = Napi::Persistent(constructor);
  exports.Set("NativeTensor", constructor);
}

TensorWrap* TensorWrap::unwrap(Napi::Env env, napi_value value) {
  void* wrapped = nullptr;
  if (napi_unwrap(env, value, &wrapped) != napi_ok || known_tensors.count(wrapped) == 0)
    return nullptr;
  return static_cast<TensorWrap*>(wrapped);
}

// new NativeTensor(device number, dtype, shape); new NativeTensor(source, offset in elements,
// shape) is a view.
TensorWrap::TensorWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TensorWrap>(info) {
  guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "NativeTensor";
    expect_arguments(info, 3, op);
    Environment& environment = Environment::of(info.Env());
    tensor_.shape = shape_from(info[2], {op, 2});
    if (info[0].IsNumber()) {
      const auto& stream = environment.stream(Argument<int64_t>::from(info[0], {op, 0}));
      tensor_.dtype = dtype_from(Argument<std::string>::from(info[1], {op, 1}), op);
      tensor_.storage = std::make_shared<Storage>(stream, tensor_.bytes());
    } else {
      const In source = Argument<In>::from(info[0], {op, 0});
      const int64_t offset = Argument<int64_t>::from(info[1], {op, 1});
      tensor_.dtype = source.dtype;
      const int64_t count = tensor_.numel();
      if (offset < 0 || offset > source.numel() - count) {
        throw Error("ERR_SHAPE", format("[view] {} elements from {} on do not fit into {}", count,
                                        offset, to_string(source.shape)));
      }
      tensor_.storage = source.storage;
      tensor_.offset = source.offset + offset;
    }
    known_tensors.insert(this);
    unowned_memory_ = environment.unowned_memory;
    live_tensors_ = environment.live_tensors;
    ++*live_tensors_;
    return info.Env().Undefined();
  });
}

TensorWrap::~TensorWrap() { known_tensors.erase(this); }

void TensorWrap::drop() {
  if (disposed()) return;
  tensor_.storage.reset();
  unowned_memory_->remove(unowned_bytes_);
  --*live_tensors_;
}

Napi::Value TensorWrap::view(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    expect_arguments(info, 2, "view");
    return Environment::of(info.Env()).tensor_class.New({info.This(), info[0], info[1]});
  });
}

// Returns a view of the same numbers of 4 bytes, read as another dtype.
Napi::Value TensorWrap::bits(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "bits";
    expect_arguments(info, 1, op);
    if (disposed()) throw Error("ERR_DISPOSED", "[bits] the tensor has been disposed");
    const DType dtype = dtype_from(Argument<std::string>::from(info[0], {op, 0}), op);
    if (size_of(dtype) != size_of(tensor_.dtype)) {
      throw Error("ERR_DTYPE", format("[bits] {} and {} differ in size", name_of(tensor_.dtype),
                                      name_of(dtype)));
    }
    Napi::Array shape = Napi::Array::New(info.Env());
    for (int64_t size : tensor_.shape)
      shape.Set(shape.Length(), Napi::Number::New(info.Env(), static_cast<double>(size)));
    const Napi::Object view =
        Environment::of(info.Env())
            .tensor_class.New({info.This(), Napi::Number::New(info.Env(), 0), shape});
    unwrap(info.Env(), view)->tensor_.dtype = dtype;
    return view;
  });
}

// Marks that from now on only the garbage collector frees this tensor, unless the program disposes
// it.
Napi::Value TensorWrap::set_unowned(const Napi::CallbackInfo& info) {
  if (disposed() || unowned_bytes_ > 0) return info.Env().Undefined();
  unowned_bytes_ = static_cast<int64_t>(tensor_.bytes());
  unowned_memory_->add(info.Env(), unowned_bytes_);
  return info.Env().Undefined();
}

Napi::Value TensorWrap::dispose(const Napi::CallbackInfo& info) {
  drop();
  return info.Env().Undefined();
}

// Copies a typed array of the tensor's dtype (bf16: Uint16Array of its bits; fp8: Uint8Array) and
// exactly its size. The array may be changed as soon as this returns.
Napi::Value TensorWrap::write(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "write";
    expect_arguments(info, 1, op);
    if (disposed()) throw Error("ERR_DISPOSED", "[write] the tensor has been disposed");
    Environment::of(info.Env()).refuse_recorded(op);
    const ArrayBytes source = ArrayBytes::from(info[0], {op, 0});
    const napi_typedarray_type wanted = tensor_.dtype == DType::f32   ? napi_float32_array
                                        : tensor_.dtype == DType::i32 ? napi_int32_array
                                        : is_fp8(tensor_.dtype)       ? napi_uint8_array
                                                                      : napi_uint16_array;
    if (source.type != wanted) {
      throw Error("ERR_DTYPE", format("[write] a tensor of {} takes a {}", name_of(tensor_.dtype),
                                      tensor_.dtype == DType::f32   ? "Float32Array"
                                      : tensor_.dtype == DType::i32 ? "Int32Array"
                                      : is_fp8(tensor_.dtype)       ? "Uint8Array"
                                                                    : "Uint16Array"));
    }
    if (source.bytes != tensor_.bytes()) {
      throw Error("ERR_SHAPE", format("[write] {} needs {} bytes, got {}", to_string(tensor_.shape),
                                      tensor_.bytes(), source.bytes));
    }
    std::shared_ptr<char[]> copy(new char[source.bytes]);
    std::memcpy(copy.get(), source.data, source.bytes);
    tensor_.storage->stream().submit(op, [target = tensor_, copy](Stream& stream) {
      Fresh<1> output;
      output.allocate(*target.storage);
      stream.copy_from_host(target.raw(), copy.get(), target.bytes());
      output.done();
    });
    return info.Env().Undefined();
  });
}

// Returns a promise of an ArrayBuffer with the tensor's bytes as they are at this point of the
// stream.
Napi::Value TensorWrap::read(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "read";
    expect_arguments(info, 0, op);
    if (disposed()) throw Error("ERR_DISPOSED", "[read] the tensor has been disposed");
    Environment::of(info.Env()).refuse_recorded(op);
    Napi::ArrayBuffer buffer;
    try {
      buffer = new_array_buffer(info.Env(), op, tensor_.bytes());
    } catch (const Error&) {
      return rejected_when_done(info.Env(), tensor_.storage->stream(), std::current_exception());
    }
    copy_to_host(op, static_cast<char*>(buffer.Data()), nullptr);
    return Environment::of(info.Env()).when_done(info.Env(), tensor_.storage->stream(), buffer);
  });
}

// Reads the tensor's bytes into a HostMemory, starting at a byte offset; returns a promise of
// undefined.
Napi::Value TensorWrap::read_into(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "readInto";
    expect_arguments(info, 2, op);
    if (disposed()) throw Error("ERR_DISPOSED", "[readInto] the tensor has been disposed");
    Environment::of(info.Env()).refuse_recorded(op);
    const HostBytes target = host_bytes_from(info[0], {op, 0});
    const int64_t offset = Argument<int64_t>::from(info[1], {op, 1});
    const size_t bytes = tensor_.bytes();
    if (offset < 0 || bytes > target.size || static_cast<size_t>(offset) > target.size - bytes) {
      throw Error("ERR_SHAPE", format("[readInto] {} bytes from byte {} on do not fit into {}",
                                      bytes, offset, target.size));
    }
    copy_to_host(op, target.data.get() + offset, target.data);
    return Environment::of(info.Env())
        .when_done(info.Env(), tensor_.storage->stream(), info.Env().Undefined());
  });
}

void TensorWrap::copy_to_host(const char* op, char* host, std::shared_ptr<void> keep) const {
  tensor_.storage->stream().submit(
      op, [source = tensor_, host, keep = std::move(keep)](Stream& stream) {
        if (!source.storage->computed()) throw Error("ERR_NATIVE", "the tensor was never computed");
        stream.copy_to_host(host, source.raw(), source.bytes(), keep);
      });
}

}  // namespace llamaforge

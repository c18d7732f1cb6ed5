// Turns a line of ops.def into a JS function: argument conversion comes from the C++ signature.
#pragma once

#include <napi.h>

#include <tuple>
#include <utility>

#include "napi/args.h"
#include "napi/environment.h"
#include "ops/op_table.h"

namespace llamaforge {

namespace detail {

// Establishes an argument's precondition when its op runs on the stream.
template <class T, class Outputs>
void prepare(const T&, size_t, Outputs&) {}
inline void require_computed(const Tensor& tensor, size_t index) {
  if (!tensor.storage->computed()) {
    throw Error(
        "ERR_NATIVE",
        format("argument {} was never computed (an earlier operation failed, or nothing wrote it)",
               index + 1));
  }
}
template <class Outputs>
void prepare(const In& tensor, size_t index, Outputs&) {
  require_computed(tensor, index);
}
template <class Outputs>
void prepare(const InOut& tensor, size_t index, Outputs&) {
  require_computed(tensor, index);
  tensor.storage->stream().will_write(tensor.storage->data(), tensor.storage->bytes());
}
template <class Outputs>
void prepare(const Out& tensor, size_t, Outputs& outputs) {
  try {
    outputs.allocate(*tensor.storage);
  } catch (const Error& error) {
    throw Error(error.code(), format("no memory for {} of shape {}: {}", name_of(tensor.dtype),
                                     to_string(tensor.shape), error.what()));
  }
  tensor.storage->stream().will_write(tensor.storage->data(), tensor.storage->bytes());
}
template <class Role, class Outputs>
void prepare(const std::optional<Role>& tensor, size_t index, Outputs& outputs) {
  if (tensor) prepare(*tensor, index, outputs);
}

// The stream that an argument lives on.
template <class T>
Stream* stream_of(const T&) {
  return nullptr;
}
inline Stream* stream_of(const In& tensor) { return &tensor.storage->stream(); }
inline Stream* stream_of(const Out& tensor) { return &tensor.storage->stream(); }
inline Stream* stream_of(const InOut& tensor) { return &tensor.storage->stream(); }
template <class Role>
Stream* stream_of(const std::optional<Role>& tensor) {
  return tensor ? stream_of(*tensor) : nullptr;
}

}  // namespace detail

template <auto Member, class Signature>
struct OpBinding;

template <auto Member, class... Args>
struct OpBinding<Member, void(Stream&, Args...)> {
  static Napi::Value call(const Napi::CallbackInfo& info) {
    const char* op = static_cast<const char*>(info.Data());
    return guarded(info, [&]() -> Napi::Value {
      if (info.Length() != sizeof...(Args)) {
        throw Error("ERR_ARGUMENT", format("[{}] expected {} arguments, got {}", op,
                                           sizeof...(Args), info.Length()));
      }
      enqueue(info, op, std::index_sequence_for<Args...>{});
      return info.Env().Undefined();
    });
  }

 private:
  template <size_t... I>
  static void enqueue(const Napi::CallbackInfo& info, const char* op, std::index_sequence<I...>) {
    // Braces fix the order of conversion, so the error names the first wrong argument.
    std::tuple<Args...> arguments{Argument<Args>::from(info[I], Place{op, I})...};
    Stream* stream = nullptr;
    auto join = [&](Stream* other) {
      if (other && stream && other != stream) {
        throw Error("ERR_DEVICE", format("[{}] the tensors are on different devices", op));
      }
      if (other) stream = other;
    };
    (join(detail::stream_of(std::get<I>(arguments))), ...);
    Environment& environment = Environment::of(info.Env());
    auto kernel = environment.ops(*stream).*Member;
    auto work = [kernel, arguments = std::move(arguments)](Stream& stream) {
      // Inputs are prepared first, so that nothing is allocated or written when one of them is
      // missing.
      Fresh<sizeof...(Args)> outputs;
      ((void)detail::prepare(std::get<I>(arguments), I, outputs), ...);
      kernel(stream, std::get<I>(arguments)...);
      outputs.done();
    };
    if (!environment.recorder) return stream->submit(op, std::move(work));
    if (environment.recorder->stream.get() != stream) {
      throw Error("ERR_DEVICE",
                  format("[{}] the tensors are not on the device that is recorded", op));
    }
    environment.recorder->recording->add(op, std::move(work));
  }
};

// Adds every op of ops.def to `target` under its camelCase name.
void init_ops(Napi::Env env, Napi::Object target);

}  // namespace llamaforge

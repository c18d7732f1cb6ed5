// The JS class NativeTensor: a reference to a native tensor. No other object passes for one.
#pragma once

#include <napi.h>

#include <memory>

#include "napi/environment.h"

namespace llamaforge {

class TensorWrap : public Napi::ObjectWrap<TensorWrap> {
 public:
  static void init(Napi::Env env, Napi::Object exports);

  explicit TensorWrap(const Napi::CallbackInfo& info);
  ~TensorWrap() override;
  void Finalize(Napi::Env) override { drop(); }

  // Returns the tensor of a JS value, or null if the value is not a NativeTensor of this addon.
  static TensorWrap* unwrap(Napi::Env env, napi_value value);
  bool disposed() const { return tensor_.storage == nullptr; }
  const Tensor& tensor() const { return tensor_; }

 private:
  Napi::Value view(const Napi::CallbackInfo& info);
  Napi::Value bits(const Napi::CallbackInfo& info);
  Napi::Value set_unowned(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value read_into(const Napi::CallbackInfo& info);
  void copy_to_host(const char* op, char* host, std::shared_ptr<void> keep) const;
  void drop();

  Tensor tensor_;
  std::shared_ptr<int64_t> live_tensors_;
  std::shared_ptr<UnownedMemory> unowned_memory_;
  int64_t unowned_bytes_ = 0;  // as counted in unowned_memory_
};

}  // namespace llamaforge

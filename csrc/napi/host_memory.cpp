#include "napi/host_memory.h"

#include <sys/mman.h>

#include <cstdlib>

#include "napi/args.h"

namespace llamaforge {

namespace {

constexpr napi_type_tag kTag = {0x6c6c616d61666f72, 0x67652d686f73746d};
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAlignment = 64;

std::shared_ptr<char> allocate(size_t bytes) {
  const bool large = bytes >= 2 * kHugePage;
  const size_t alignment = large ? kHugePage : kAlignment;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!memory)
    throw Error("ERR_OUT_OF_MEMORY",
                format("[HostMemory] the system refused {} bytes on the host", bytes));
  if (large) madvise(memory, bytes, MADV_HUGEPAGE);
  return {static_cast<char*>(memory), std::free};
}

class HostMemory final : public Napi::ObjectWrap<HostMemory> {
 public:
  explicit HostMemory(const Napi::CallbackInfo& info) : Napi::ObjectWrap<HostMemory>(info) {
    guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "HostMemory");
      const int64_t size = Argument<int64_t>::from(info[0], {"HostMemory", 0});
      if (size < 1 || size > (int64_t{1} << 47))
        bad_argument({"HostMemory", 0}, "a number of bytes from 1", info[0]);
      bytes_ = {allocate(static_cast<size_t>(size)), static_cast<size_t>(size)};
      auto* held = new std::shared_ptr<char>(bytes_.data);
      const auto release = [](Napi::Env env, void*, std::shared_ptr<char>* held) { delete held; };
      info.This().As<Napi::Object>().DefineProperty(Napi::PropertyDescriptor::Value(
          "buffer", Napi::ArrayBuffer::New(info.Env(), held->get(), bytes_.size, release, held),
          napi_enumerable));
      napi_type_tag_object(info.Env(), info.This(), &kTag);
      return info.Env().Undefined();
    });
  }

  const HostBytes& bytes() const { return bytes_; }

 private:
  HostBytes bytes_;
};

}  // namespace

Napi::Function define_host_memory(Napi::Env env) {
  return HostMemory::DefineClass(env, "HostMemory", {});
}

HostBytes host_bytes_from(Napi::Value value, Place place) {
  bool tagged = false;
  if (!value.IsObject() ||
      napi_check_object_type_tag(value.Env(), value, &kTag, &tagged) != napi_ok || !tagged) {
    bad_argument(place, "a HostMemory", value);
  }
  return HostMemory::Unwrap(value.As<Napi::Object>())->bytes();
}

}  // namespace llamaforge

#include "napi/store_wrap.h"

#include <atomic>
#include <cstring>
#include <thread>

#include "napi/array_buffer.h"
#include "napi/comm_state.h"

namespace llamaforge {

using comm::Milliseconds;
using comm::Session;

namespace {

constexpr napi_type_tag kStoreTag = {0x6c6c616d61666f72, 0x67652d73746f7265};

class StoreWrap final : public Napi::ObjectWrap<StoreWrap> {
 public:
  using Content = std::shared_ptr<Session>;

  explicit StoreWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<StoreWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      session_ = made_from<Content>(info, "Store");
      napi_type_tag_object(info.Env(), info.This(), &kStoreTag);
      return info.Env().Undefined();
    });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Store",
        {InstanceAccessor<&StoreWrap::local_address>("localAddress"),
         InstanceMethod<&StoreWrap::set>("set"), InstanceMethod<&StoreWrap::get>("get"),
         InstanceMethod<&StoreWrap::add>("add"), InstanceMethod<&StoreWrap::barrier>("barrier"),
         InstanceMethod<&StoreWrap::on_failure>("onFailure"),
         InstanceMethod<&StoreWrap::close>("close")});
  }

  static const Content& session_from(Napi::Value value, Place place) {
    bool tagged = false;
    if (!value.IsObject() ||
        napi_check_object_type_tag(value.Env(), value, &kStoreTag, &tagged) != napi_ok || !tagged) {
      bad_argument(place, "a store", value);
    }
    return Unwrap(value.As<Napi::Object>())->open();
  }

 private:
  const Content& open() {
    if (!session_) throw Error("ERR_PEER", "[store] it has been closed");
    return session_;
  }

  Napi::Value local_address(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      return Napi::String::New(info.Env(), open()->store().local_address());
    });
  }

  Napi::Value set(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "store");
      const std::string key = Argument<std::string>::from(info[0], {"store", 0});
      const ArrayBytes bytes = ArrayBytes::of_uint8(info[1], {"store", 1});
      const std::string value(static_cast<const char*>(bytes.data), bytes.bytes);
      Session& session = *open();
      return answer(
          info.Env(),
          [&](comm::StoreClient::Reply reply) {
            session.store().set(key, value, std::move(reply));
          },
          nullptr);
    });
  }

  Napi::Value get(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "store");
      const std::string key = Argument<std::string>::from(info[0], {"store", 0});
      const Milliseconds timeout = timeout_from(info[1], {"store", 1});
      Session& session = *open();
      return answer(
          info.Env(),
          [&](comm::StoreClient::Reply reply) {
            session.store().get(key, timeout, std::move(reply));
          },
          [](Napi::Env env, const std::string& value) -> Napi::Value {
            Napi::ArrayBuffer buffer = new_array_buffer(env, "store", value.size());
            if (!value.empty()) std::memcpy(buffer.Data(), value.data(), value.size());
            return buffer;
          });
    });
  }

  Napi::Value add(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "store");
      const std::string key = Argument<std::string>::from(info[0], {"store", 0});
      const int64_t amount = Argument<int64_t>::from(info[1], {"store", 1});
      Session& session = *open();
      return answer(
          info.Env(),
          [&](comm::StoreClient::Reply reply) {
            session.store().add(key, amount, std::move(reply));
          },
          [](Napi::Env env, const std::string& value) -> Napi::Value {
            return Napi::Number::New(
                env, static_cast<double>(static_cast<int64_t>(comm::Reader(value).u64())));
          });
    });
  }

  Napi::Value barrier(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "store");
      const std::string name = Argument<std::string>::from(info[0], {"store", 0});
      const Milliseconds timeout = timeout_from(info[1], {"store", 1});
      Session& session = *open();
      return answer(
          info.Env(),
          [&](comm::StoreClient::Reply reply) {
            session.store().barrier(name, timeout, std::move(reply));
          },
          nullptr);
    });
  }

  Napi::Value on_failure(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "store");
      if (!info[0].IsFunction()) bad_argument({"store", 0}, "a function", info[0]);
      // The listener is never deleted: the reference belongs to the JS thread, and a store has one
      // listener.
      auto* listener = new Napi::FunctionReference(Napi::Persistent(info[0].As<Napi::Function>()));
      open()->on_failure(
          [listener, post = Environment::of(info.Env()).poster()](const std::string& verdict) {
            post([listener, verdict](Napi::Env env) {
              listener->Call({Napi::String::New(env, verdict)});
            });
          });
      return info.Env().Undefined();
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      Environment::Settle settle;
      const Napi::Promise promise = Environment::of(info.Env()).later(info.Env(), settle);
      if (!session_) {
        settle(nullptr, nullptr);
        return promise;
      }
      std::thread([session = std::move(session_), settle]() mutable {
        session->close();
        session.reset();
        settle(nullptr, nullptr);
      }).detach();
      return promise;
    });
  }

  // Returns a promise of a request's answer. start(reply) sends the request; `convert` makes a JS
  // value of the answer.
  template <class Start>
  static Napi::Value answer(Napi::Env env, Start start,
                            Napi::Value (*convert)(Napi::Env, const std::string&)) {
    Environment::Settle settle;
    const Napi::Promise promise = Environment::of(env).later(env, settle);
    try {
      start([settle, convert](std::exception_ptr failure, std::string value) {
        if (failure || !convert) return settle(failure, nullptr);
        settle(nullptr,
               [convert, value = std::move(value)](Napi::Env env) { return convert(env, value); });
      });
    } catch (const Error&) {
      settle(std::current_exception(), nullptr);
    }
    return promise;
  }

  Content session_;
};

}  // namespace

Napi::Function define_store(Napi::Env env) { return StoreWrap::define(env); }

std::shared_ptr<Session> session_from(Napi::Value value, Place place) {
  return StoreWrap::session_from(value, place);
}

Napi::Value connect_store(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "connectStore";
    expect_arguments(info, 7, op);
    comm::StoreOptions options;
    options.host = Argument<std::string>::from(info[0], {op, 0});
    options.port = static_cast<int>(Argument<int64_t>::from(info[1], {op, 1}));
    options.rank = static_cast<int>(Argument<int64_t>::from(info[2], {op, 2}));
    options.world_size = static_cast<int>(Argument<int64_t>::from(info[3], {op, 3}));
    options.token = Argument<std::string>::from(info[4], {op, 4});
    options.timeout = timeout_from(info[5], {op, 5});
    options.one_host = Argument<bool>::from(info[6], {op, 6});
    if (options.port < 1 || options.port > 65535)
      bad_argument({op, 1}, "a port from 1 to 65535", info[1]);
    if (options.world_size < 1 || options.world_size > 65536)
      bad_argument({op, 3}, "a world size from 1 to 65536", info[3]);
    if (options.rank < 0 || options.rank >= options.world_size)
      bad_argument({op, 2}, "a rank below the world size", info[2]);
    if (options.token.size() > 256) bad_argument({op, 4}, "a token of at most 256 bytes", info[4]);
    Environment& environment = Environment::of(info.Env());
    Environment::Settle settle;
    const Napi::Promise promise = environment.later(info.Env(), settle);
    auto cancelled = std::make_shared<std::atomic<bool>>(false);
    environment.before_end.push_back([cancelled] { *cancelled = true; });
    std::thread([options, settle, cancelled] {
      try {
        auto session = std::make_shared<Session>(options, *cancelled);
        settle(nullptr, [session](Napi::Env env) mutable {
          return make_wrapped(comm_state_of(env).store_class, env, session);
        });
      } catch (...) {
        settle(std::current_exception(), nullptr);
      }
    }).detach();
    return promise;
  });
}

}  // namespace llamaforge

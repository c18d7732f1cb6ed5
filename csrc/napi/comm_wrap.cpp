#include "napi/comm_wrap.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <thread>

#include "comm/cpu_collectives.h"
#include "comm/session.h"
#include "napi/args.h"
#include "napi/environment.h"

namespace llamaforge {

using comm::Group;
using comm::Milliseconds;
using comm::Session;

// Per JS environment.
struct CommState {
  Napi::FunctionReference store_class, communicator_class, work_class;
  std::shared_ptr<comm::CommunicationThread> cpu_thread;  // made with the first group on the CPU
  std::vector<std::weak_ptr<Group>> groups;
};

namespace {

constexpr napi_type_tag kStoreTag = {0x6c6c616d61666f72, 0x67652d73746f7265};

void expect_arguments(const Napi::CallbackInfo& info, size_t count, const char* op) {
  if (info.Length() != count) {
    throw Error("ERR_ARGUMENT", format("[{}] expected {} arguments, got {}", op, count, info.Length()));
  }
}

Milliseconds timeout_from(Napi::Value value, Place place) {
  const int64_t milliseconds = Argument<int64_t>::from(value, place);
  if (milliseconds < 0 || milliseconds > INT32_MAX) bad_argument(place, "a number of milliseconds", value);
  return Milliseconds(milliseconds);
}

// The classes below are made by this file alone: a script that calls their constructor has no External to give.
template <class T>
T& made_from(const Napi::CallbackInfo& info, const char* name) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Error("ERR_ARGUMENT", format("[{}] is not made by `new`", name));
  return *info[0].As<Napi::External<T>>().Data();
}

CommState& state_of(Napi::Env env) { return *Environment::of(env).comm; }

template <class T>
Napi::Value make(const Napi::FunctionReference& constructor, Napi::Env env, T& content) {
  return constructor.New({Napi::External<T>::New(env, &content)});
}

// ---- Work

class WorkWrap final : public Napi::ObjectWrap<WorkWrap> {
 public:
  using Content = std::shared_ptr<CollectiveWork>;

  explicit WorkWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<WorkWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      work_ = made_from<Content>(info, "Work");
      return info.Env().Undefined();
    });
  }

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Work", {InstanceMethod<&WorkWrap::wait>("wait"), InstanceMethod<&WorkWrap::done>("done")});
  }

 private:
  Napi::Value wait(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      work_->wait();
      return info.Env().Undefined();
    });
  }

  Napi::Value done(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      Environment::Settle settle;
      const Napi::Promise promise = Environment::of(info.Env()).later(info.Env(), settle);
      work_->when_done([settle](std::exception_ptr failure) { settle(failure, nullptr); });
      return promise;
    });
  }

  Content work_;
};

// ---- Store

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
        {InstanceAccessor<&StoreWrap::local_address>("localAddress"), InstanceMethod<&StoreWrap::set>("set"),
         InstanceMethod<&StoreWrap::get>("get"), InstanceMethod<&StoreWrap::add>("add"),
         InstanceMethod<&StoreWrap::barrier>("barrier"), InstanceMethod<&StoreWrap::on_failure>("onFailure"),
         InstanceMethod<&StoreWrap::close>("close")});
  }

  static const Content& session_from(Napi::Value value, Place place) {
    bool tagged = false;
    if (!value.IsObject() || napi_check_object_type_tag(value.Env(), value, &kStoreTag, &tagged) != napi_ok ||
        !tagged) {
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
    return guarded(info,
                   [&]() -> Napi::Value { return Napi::String::New(info.Env(), open()->store().local_address()); });
  }

  Napi::Value set(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "store");
      const std::string key = Argument<std::string>::from(info[0], {"store", 0});
      if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
        bad_argument({"store", 1}, "a Uint8Array", info[1]);
      }
      const auto bytes = info[1].As<Napi::Uint8Array>();
      const std::string value(reinterpret_cast<const char*>(bytes.Data()), bytes.ByteLength());
      Session& session = *open();
      return answer(
          info.Env(), [&](comm::StoreClient::Reply reply) { session.store().set(key, value, std::move(reply)); },
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
          info.Env(), [&](comm::StoreClient::Reply reply) { session.store().get(key, timeout, std::move(reply)); },
          [](Napi::Env env, const std::string& value) -> Napi::Value {
            Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, value.size());
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
          info.Env(), [&](comm::StoreClient::Reply reply) { session.store().add(key, amount, std::move(reply)); },
          [](Napi::Env env, const std::string& value) -> Napi::Value {
            return Napi::Number::New(env, static_cast<double>(static_cast<int64_t>(comm::Reader(value).u64())));
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
          info.Env(), [&](comm::StoreClient::Reply reply) { session.store().barrier(name, timeout, std::move(reply)); },
          nullptr);
    });
  }

  Napi::Value on_failure(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "store");
      if (!info[0].IsFunction()) bad_argument({"store", 0}, "a function", info[0]);
      // Never deleted: the reference belongs to the JS thread, and a store has one listener.
      auto* listener = new Napi::FunctionReference(Napi::Persistent(info[0].As<Napi::Function>()));
      open()->on_failure([listener, post = Environment::of(info.Env()).poster()](const std::string& verdict) {
        post([listener, verdict](Napi::Env env) { listener->Call({Napi::String::New(env, verdict)}); });
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

  // A promise of a request's answer. start(reply) sends it; `convert` makes the value of what came.
  template <class Start>
  static Napi::Value answer(Napi::Env env, Start start, Napi::Value (*convert)(Napi::Env, const std::string&)) {
    Environment::Settle settle;
    const Napi::Promise promise = Environment::of(env).later(env, settle);
    try {
      start([settle, convert](std::exception_ptr failure, std::string value) {
        if (failure || !convert) return settle(failure, nullptr);
        settle(nullptr, [convert, value = std::move(value)](Napi::Env env) { return convert(env, value); });
      });
    } catch (const Error&) {
      settle(std::current_exception(), nullptr);
    }
    return promise;
  }

  Content session_;
};

// ---- Communicator

class CommunicatorWrap final : public Napi::ObjectWrap<CommunicatorWrap> {
 public:
  struct Content {
    std::shared_ptr<Session> session;
    std::shared_ptr<Group> group;
    int64_t device;
    int rank;
  };

  explicit CommunicatorWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CommunicatorWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      content_ = made_from<Content>(info, "Communicator");
      return info.Env().Undefined();
    });
  }

  // Without close(): the group stays with the watchdog until the store ends.
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Communicator",
        {InstanceAccessor<&CommunicatorWrap::library>("library"),
         InstanceMethod<&CommunicatorWrap::all_reduce>("allReduce"),
         InstanceMethod<&CommunicatorWrap::reduce_scatter>("reduceScatter"),
         InstanceMethod<&CommunicatorWrap::all_gather>("allGather"),
         InstanceMethod<&CommunicatorWrap::broadcast>("broadcast"),
         InstanceMethod<&CommunicatorWrap::barrier>("barrier"), InstanceMethod<&CommunicatorWrap::stats>("stats"),
         InstanceMethod<&CommunicatorWrap::close>("close"), InstanceMethod<&CommunicatorWrap::abort>("abort")});
  }

 private:
  Group& open() {
    if (!content_.group) throw Error("ERR_PEER", "[communicator] it has been closed");
    return *content_.group;
  }

  Tensor tensor_from(const Napi::CallbackInfo& info, size_t index, const char* op) {
    const Tensor tensor = Argument<In>::from(info[index], {op, index});
    if (tensor.storage->shared_stream() != Environment::of(info.Env()).stream(content_.device)) {
      throw Error("ERR_DEVICE", format("[{}] argument {} is not on the communicator's device", op, index + 1));
    }
    return tensor;
  }

  static void expect_dtype(const Tensor& tensor, const char* op) {
    if (tensor.dtype == DType::i32) throw Error("ERR_DTYPE", format("[{}] expected f32 or bf16, got i32", op));
  }

  Napi::Value start(const Napi::CallbackInfo& info, CollectiveCall call) {
    WorkWrap::Content work = open().enqueue(std::move(call));
    return make(state_of(info.Env()).work_class, info.Env(), work);
  }

  Napi::Value all_reduce(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "allReduce");
      CollectiveCall call;
      call.kind = CollectiveKind::all_reduce;
      call.input = call.output = tensor_from(info, 0, "allReduce");
      expect_dtype(call.input, "allReduce");
      call.average = Argument<bool>::from(info[1], {"allReduce", 1});
      return start(info, std::move(call));
    });
  }

  Napi::Value reduce_scatter(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 3, "reduceScatter");
      CollectiveCall call;
      call.kind = CollectiveKind::reduce_scatter;
      call.input = tensor_from(info, 0, "reduceScatter");
      call.output = tensor_from(info, 1, "reduceScatter");
      expect_dtype(call.input, "reduceScatter");
      expect_same_dtype(call, "reduceScatter");
      call.average = Argument<bool>::from(info[2], {"reduceScatter", 2});
      return start(info, std::move(call));
    });
  }

  Napi::Value all_gather(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "allGather");
      CollectiveCall call;
      call.kind = CollectiveKind::all_gather;
      call.input = tensor_from(info, 0, "allGather");
      call.output = tensor_from(info, 1, "allGather");
      expect_same_dtype(call, "allGather");
      return start(info, std::move(call));
    });
  }

  Napi::Value broadcast(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 2, "broadcast");
      CollectiveCall call;
      call.kind = CollectiveKind::broadcast;
      call.output = tensor_from(info, 0, "broadcast");
      const int64_t root = Argument<int64_t>::from(info[1], {"broadcast", 1});
      if (root < 0 || root >= static_cast<int64_t>(open().size()))
        bad_argument({"broadcast", 1}, "a rank of the group", info[1]);
      call.root = static_cast<int>(root);
      // The others' tensors need not have been written.
      if (call.root == content_.rank) call.input = call.output;
      return start(info, std::move(call));
    });
  }

  Napi::Value barrier(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value { return start(info, {}); });
  }

  static void expect_same_dtype(const CollectiveCall& call, const char* op) {
    if (call.input.dtype == call.output.dtype) return;
    throw Error("ERR_DTYPE",
                format("[{}] input is {} and output {}", op, name_of(call.input.dtype), name_of(call.output.dtype)));
  }

  Napi::Value stats(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      const Napi::Env env = info.Env();
      Napi::Object all = Napi::Object::New(env);
      for (int i = 0; i < kCollectiveKinds; ++i) {
        const auto kind = static_cast<CollectiveKind>(i);
        const Group::Stats stats = open().stats(kind);
        Napi::Object one = Napi::Object::New(env);
        one.Set("calls", Napi::Number::New(env, static_cast<double>(stats.calls)));
        one.Set("bytes", Napi::Number::New(env, static_cast<double>(stats.bytes)));
        one.Set("sentBytes", Napi::Number::New(env, static_cast<double>(stats.sent_bytes)));
        all.Set(name_of(kind), one);
      }
      return all;
    });
  }

  Napi::Value library(const Napi::CallbackInfo& info) {
    return guarded(info,
                   [&]() -> Napi::Value { return Napi::String::New(info.Env(), open().collectives().description()); });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      Environment::Settle settle;
      const Napi::Promise promise = Environment::of(info.Env()).later(info.Env(), settle);
      // On a thread: the end of a communicator may wait for its library.
      const auto end = [content = content_, settle](std::exception_ptr failure) {
        std::thread([content, settle, failure]() mutable {
          if (content.group) {
            content.session->remove(*content.group);
            content.group->close();
          }
          content = {};
          settle(failure, nullptr);
        }).detach();
      };
      const auto last = content_.group ? content_.group->last_work() : nullptr;
      content_ = {};
      if (last) {
        last->when_done(end);
      } else {
        end(nullptr);
      }
      return promise;
    });
  }

  Napi::Value abort(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "abort");
      const std::string reason = Argument<std::string>::from(info[0], {"abort", 0});
      open();
      content_.session->report(content_.group->name(), 0,
                               format("Rank {} gave up: {}.", content_.session->options().rank, reason));
      return info.Env().Undefined();
    });
  }

  Content content_;
};

// ---- functions

Napi::Value connect_store(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "connectStore";
    expect_arguments(info, 6, op);
    comm::StoreOptions options;
    options.host = Argument<std::string>::from(info[0], {op, 0});
    options.port = static_cast<int>(Argument<int64_t>::from(info[1], {op, 1}));
    options.rank = static_cast<int>(Argument<int64_t>::from(info[2], {op, 2}));
    options.world_size = static_cast<int>(Argument<int64_t>::from(info[3], {op, 3}));
    options.token = Argument<std::string>::from(info[4], {op, 4});
    options.timeout = timeout_from(info[5], {op, 5});
    if (options.port < 1 || options.port > 65535) bad_argument({op, 1}, "a port from 1 to 65535", info[1]);
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
        settle(nullptr, [session](Napi::Env env) mutable { return make(state_of(env).store_class, env, session); });
      } catch (...) {
        settle(std::current_exception(), nullptr);
      }
    }).detach();
    return promise;
  });
}

// Blocking, on a thread of its own.
std::shared_ptr<Collectives> open_cpu(Session& session, const std::string& name, const std::vector<uint32_t>& ranks,
                                      int rank, Milliseconds timeout, Milliseconds start_timeout,
                                      std::shared_ptr<Stream> stream,
                                      std::shared_ptr<comm::CommunicationThread> thread) {
  std::unique_ptr<comm::Transport> transport;
  if (ranks.size() > 1) {
    comm::TransportOptions options;
    options.name = name;
    options.ranks = ranks;
    options.rank = rank;
    options.size = static_cast<int>(ranks.size());
    options.address = session.store().local_address();
    options.start_timeout = start_timeout;
    // The watchdog is there first, and says more.
    options.timeout = 2 * timeout + Milliseconds(10'000);
    options.set = [&](const std::string& key, std::string_view value) { session.store().set(key, value); };
    options.get = [&](const std::string& key) { return session.store().get(key, start_timeout); };
    transport = comm::open_transport(options);
  }
  return std::make_shared<comm::CpuCollectives>(
      std::move(stream), std::move(thread),
      std::make_unique<comm::DirectAlgorithms>(std::move(transport), rank, static_cast<int>(ranks.size()), ranks));
}

// Blocking, on a thread of its own.
std::shared_ptr<Collectives> open_gpu(const Plugin& plugin, Session& session, const std::string& name,
                                      const std::vector<uint32_t>& ranks, int rank, Milliseconds start_timeout,
                                      const std::shared_ptr<Stream>& stream) {
  CollectivesOptions options;
  options.name = name;
  options.ranks = ranks;
  options.rank = rank;
  options.size = static_cast<int>(ranks.size());
  options.start_timeout = start_timeout;
  if (ranks.size() > 1) {
    const std::string key = format("nccl/{}", name);
    if (rank == 0) {
      options.id = plugin.collectives_id();
      session.store().set(key, options.id);
    } else {
      options.id = session.store().get(key, start_timeout);
    }
  }
  return plugin.open_collectives(stream, options);
}

Napi::Value create_communicator(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    constexpr const char* op = "createCommunicator";
    expect_arguments(info, 6, op);
    const std::shared_ptr<Session> session = StoreWrap::session_from(info[0], {op, 0});
    const int64_t device = Argument<int64_t>::from(info[1], {op, 1});
    const std::string name = Argument<std::string>::from(info[2], {op, 2});
    if (name.empty() || name.size() > 200) bad_argument({op, 2}, "a name of 1 to 200 bytes", info[2]);
    if (!info[3].IsArray()) bad_argument({op, 3}, "an array of ranks", info[3]);
    const auto list = info[3].As<Napi::Array>();
    std::vector<uint32_t> ranks;
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const int64_t rank = Argument<int64_t>::from(list.Get(i), {op, 3});
      if (rank < 0 || rank >= session->options().world_size)
        bad_argument({op, 3}, "ranks below the world size", list.Get(i));
      ranks.push_back(static_cast<uint32_t>(rank));
    }
    const auto own = std::find(ranks.begin(), ranks.end(), static_cast<uint32_t>(session->options().rank));
    if (own == ranks.end() || std::set(ranks.begin(), ranks.end()).size() != ranks.size()) {
      throw Error("ERR_ARGUMENT",
                  format("[{}] expected different ranks with {} among them", op, session->options().rank));
    }
    const int rank = static_cast<int>(own - ranks.begin());
    const Milliseconds timeout = timeout_from(info[4], {op, 4}), start_timeout = timeout_from(info[5], {op, 5});
    Environment& environment = Environment::of(info.Env());
    const std::shared_ptr<Stream> stream = environment.stream(device);
    CommState& state = *environment.comm;
    if (device == 0 && !state.cpu_thread) state.cpu_thread = std::make_shared<comm::CommunicationThread>();
    session->use_name(name);

    Environment::Settle settle;
    const Napi::Promise promise = environment.later(info.Env(), settle);
    const Plugin* plugin = device == 0 ? nullptr : environment.cuda().plugin;
    std::thread([=, thread = state.cpu_thread] {
      try {
        std::shared_ptr<Collectives> collectives;
        Group::Check check;
        if (plugin) {
          collectives = open_gpu(*plugin, *session, name, ranks, rank, start_timeout, stream);
          // Gloo's messages are compared as they come; what NCCL moves has no room for that.
          check = [name, size = ranks.size(), weak = std::weak_ptr(session)](uint64_t sequence, uint64_t hash,
                                                                             const std::string& description) {
            if (const auto session = weak.lock()) session->store().check(name, size, sequence, hash, description);
          };
        } else {
          collectives = open_cpu(*session, name, ranks, rank, timeout, start_timeout, stream, thread);
        }
        auto group =
            std::make_shared<Group>(name, ranks, ranks[static_cast<size_t>(rank)], timeout, collectives, check);
        session->add(group);
        settle(nullptr, [session, group, device, rank](Napi::Env env) mutable {
          CommState& state = state_of(env);
          state.groups.push_back(group);
          CommunicatorWrap::Content content = {session, group, device, rank};
          return make(state.communicator_class, env, content);
        });
      } catch (...) {
        settle(std::current_exception(), nullptr);
      }
    }).detach();
    return promise;
  });
}

}  // namespace

void init_comm(Napi::Env env, Napi::Object exports) {
  Environment& environment = Environment::of(env);
  environment.comm = std::make_shared<CommState>();
  environment.comm->store_class = Napi::Persistent(StoreWrap::define(env));
  environment.comm->communicator_class = Napi::Persistent(CommunicatorWrap::define(env));
  environment.comm->work_class = Napi::Persistent(WorkWrap::define(env));
  // Before the streams end, which may wait for a collective.
  environment.before_end.push_back([state = std::weak_ptr(environment.comm)] {
    const auto alive = state.lock();
    if (!alive) return;
    for (const auto& each : alive->groups) {
      if (const auto group = each.lock()) group->abort("this process ends");
    }
  });
  Napi::Object functions = Napi::Object::New(env);
  functions.Set("connectStore", Napi::Function::New(env, connect_store, "connectStore"));
  functions.Set("createCommunicator", Napi::Function::New(env, create_communicator, "createCommunicator"));
  exports.Set("comm", functions);
}

}  // namespace llamaforge

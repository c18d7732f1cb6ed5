#include "napi/comm_wrap.h"

#include <algorithm>
#include <set>
#include <thread>

#include "napi/comm_state.h"
#include "napi/communicator_wrap.h"
#include "napi/store_wrap.h"
#include "napi/timeline_wrap.h"

namespace llamaforge {

using comm::Group;
using comm::Milliseconds;
using comm::Session;

namespace {

// Blocks, so it runs on a thread of its own.
std::shared_ptr<Collectives> open_cpu(Session& session, const std::string& name,
                                      const std::vector<uint32_t>& ranks, int rank,
                                      Milliseconds timeout, Milliseconds start_timeout,
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
    // The watchdog's timeout comes first, because its message says more.
    options.timeout = 2 * timeout + Milliseconds(10'000);
    options.set = [&](const std::string& key, std::string_view value) {
      session.store().set(key, value);
    };
    options.get = [&](const std::string& key) { return session.store().get(key, start_timeout); };
    transport = comm::open_transport(options);
  }
  return std::make_shared<comm::CpuCollectives>(
      name, std::move(stream), std::move(thread),
      std::make_unique<comm::DirectAlgorithms>(std::move(transport), rank,
                                               static_cast<int>(ranks.size()), ranks));
}

// Blocks, so it runs on a thread of its own.
std::shared_ptr<Collectives> open_gpu(const Plugin& plugin, Session& session,
                                      const std::string& name, const std::vector<uint32_t>& ranks,
                                      int rank, Milliseconds start_timeout,
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
    const std::shared_ptr<Session> session = session_from(info[0], {op, 0});
    const int64_t device = Argument<int64_t>::from(info[1], {op, 1});
    const std::string name = Argument<std::string>::from(info[2], {op, 2});
    if (name.empty() || name.size() > 200)
      bad_argument({op, 2}, "a name of 1 to 200 bytes", info[2]);
    if (!info[3].IsArray()) bad_argument({op, 3}, "an array of ranks", info[3]);
    const auto list = info[3].As<Napi::Array>();
    std::vector<uint32_t> ranks;
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const int64_t rank = Argument<int64_t>::from(list.Get(i), {op, 3});
      if (rank < 0 || rank >= session->options().world_size)
        bad_argument({op, 3}, "ranks below the world size", list.Get(i));
      ranks.push_back(static_cast<uint32_t>(rank));
    }
    const auto own =
        std::find(ranks.begin(), ranks.end(), static_cast<uint32_t>(session->options().rank));
    if (own == ranks.end() || std::set(ranks.begin(), ranks.end()).size() != ranks.size()) {
      throw Error("ERR_ARGUMENT", format("[{}] expected different ranks with {} among them", op,
                                         session->options().rank));
    }
    const int rank = static_cast<int>(own - ranks.begin());
    const Milliseconds timeout = timeout_from(info[4], {op, 4}),
                       start_timeout = timeout_from(info[5], {op, 5});
    Environment& environment = Environment::of(info.Env());
    const std::shared_ptr<Stream> stream = environment.stream(device);
    CommState& state = *environment.comm;
    if (device == 0 && !state.cpu_thread)
      state.cpu_thread = std::make_shared<comm::CommunicationThread>();
    session->use_name(name);

    const Plugin* plugin = device == 0 ? nullptr : environment.cuda().plugin;
    if (plugin && ranks.size() > 1) plugin->load_collectives();

    Environment::Settle settle;
    const Napi::Promise promise = environment.later(info.Env(), settle);
    std::thread([=, thread = state.cpu_thread] {
      try {
        std::shared_ptr<Collectives> collectives;
        Group::Check check;
        if (plugin) {
          collectives = open_gpu(*plugin, *session, name, ranks, rank, start_timeout, stream);
          // With NCCL the store compares the ranks' calls. Gloo's exchange compares a header of
          // each call, for which NCCL's messages have no room.
          check = [name, size = ranks.size(), weak = std::weak_ptr(session)](
                      uint64_t sequence, uint64_t hash, const std::string& description) {
            if (const auto session = weak.lock())
              session->store().check(name, size, sequence, hash, description);
          };
        } else {
          collectives =
              open_cpu(*session, name, ranks, rank, timeout, start_timeout, stream, thread);
        }
        auto group = std::make_shared<Group>(name, ranks, ranks[static_cast<size_t>(rank)], timeout,
                                             collectives, check);
        session->add(group);
        settle(nullptr, [session, group, device, rank](Napi::Env env) mutable {
          CommState& state = comm_state_of(env);
          state.groups.push_back(group);
          CommunicatorContent content = {session, group, device, rank};
          return make_wrapped(state.communicator_class, env, content);
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
  environment.comm->store_class = Napi::Persistent(define_store(env));
  environment.comm->communicator_class = Napi::Persistent(define_communicator(env));
  environment.comm->work_class = Napi::Persistent(define_work(env));
  environment.comm->timeline_class = Napi::Persistent(define_timeline(env));
  // Runs before the streams end, because a stream may wait for a collective.
  environment.before_end.push_back([state = std::weak_ptr(environment.comm)] {
    const auto alive = state.lock();
    if (!alive) return;
    for (const auto& each : alive->groups) {
      if (const auto group = each.lock()) group->abort("this process ends");
    }
  });
  Napi::Object functions = Napi::Object::New(env);
  functions.Set("connectStore", Napi::Function::New(env, connect_store, "connectStore"));
  functions.Set("createCommunicator",
                Napi::Function::New(env, create_communicator, "createCommunicator"));
  exports.Set("comm", functions);
}

}  // namespace llamaforge

#include "napi/communicator_wrap.h"

#include <thread>
#include <utility>

#include "napi/comm_state.h"
#include "napi/timeline_wrap.h"

namespace llamaforge {

using comm::Group;

namespace {

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
    return DefineClass(
        env, "Work",
        {InstanceMethod<&WorkWrap::wait>("wait"), InstanceMethod<&WorkWrap::done>("done")});
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

class CommunicatorWrap final : public Napi::ObjectWrap<CommunicatorWrap> {
 public:
  using Content = CommunicatorContent;

  explicit CommunicatorWrap(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<CommunicatorWrap>(info) {
    guarded(info, [&]() -> Napi::Value {
      content_ = made_from<Content>(info, "Communicator");
      return info.Env().Undefined();
    });
  }

  // If the program does not call close(), the group stays with the watchdog until the store ends.
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Communicator",
                       {InstanceAccessor<&CommunicatorWrap::backend>("backend"),
                        InstanceMethod<&CommunicatorWrap::all_reduce>("allReduce"),
                        InstanceMethod<&CommunicatorWrap::reduce_scatter>("reduceScatter"),
                        InstanceMethod<&CommunicatorWrap::all_gather>("allGather"),
                        InstanceMethod<&CommunicatorWrap::broadcast>("broadcast"),
                        InstanceMethod<&CommunicatorWrap::barrier>("barrier"),
                        InstanceMethod<&CommunicatorWrap::stats>("stats"),
                        InstanceMethod<&CommunicatorWrap::make_timeline>("makeTimeline"),
                        InstanceMethod<&CommunicatorWrap::follow>("follow"),
                        InstanceMethod<&CommunicatorWrap::close>("close"),
                        InstanceMethod<&CommunicatorWrap::abort>("abort")});
  }

 private:
  Group& open() {
    if (!content_.group) throw Error("ERR_PEER", "[communicator] it has been closed");
    return *content_.group;
  }

  Tensor tensor_from(const Napi::CallbackInfo& info, size_t index, const char* op) {
    Environment::of(info.Env()).refuse_recorded(op);
    const Tensor tensor = Argument<In>::from(info[index], {op, index});
    if (tensor.storage->shared_stream() != Environment::of(info.Env()).stream(content_.device)) {
      throw Error("ERR_DEVICE",
                  format("[{}] argument {} is not on the communicator's device", op, index + 1));
    }
    return tensor;
  }

  static void expect_dtype(const Tensor& tensor, const char* op) {
    if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16) {
      throw Error("ERR_DTYPE",
                  format("[{}] expected f32 or bf16, got {}", op, name_of(tensor.dtype)));
    }
  }

  Napi::Value start(const Napi::CallbackInfo& info, CollectiveCall call) {
    WorkWrap::Content work = open().enqueue(std::move(call));
    return make_wrapped(comm_state_of(info.Env()).work_class, info.Env(), work);
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
      // Only the root's tensor must have been written.
      if (call.root == content_.rank) call.input = call.output;
      return start(info, std::move(call));
    });
  }

  Napi::Value barrier(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value { return start(info, {}); });
  }

  static void expect_same_dtype(const CollectiveCall& call, const char* op) {
    if (call.input.dtype == call.output.dtype) return;
    throw Error("ERR_DTYPE", format("[{}] input is {} and output {}", op, name_of(call.input.dtype),
                                    name_of(call.output.dtype)));
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

  Napi::Value backend(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      return Napi::String::New(info.Env(), open().collectives().description());
    });
  }

  Napi::Value make_timeline(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      TimelineContent content = {open().make_timeline(), content_.device};
      return make_wrapped(comm_state_of(info.Env()).timeline_class, info.Env(), content);
    });
  }

  Napi::Value follow(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      expect_arguments(info, 1, "follow");
      open().follow(timeline_from(info[0], content_.device, {"follow", 0}));
      return info.Env().Undefined();
    });
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    return guarded(info, [&]() -> Napi::Value {
      Environment::Settle settle;
      const Napi::Promise promise = Environment::of(info.Env()).later(info.Env(), settle);
      const auto last = content_.group ? content_.group->last_work() : nullptr;
      // The end of a communicator may wait for its library, so it runs on a thread of its own. The
      // calling thread keeps nothing of the communicator.
      const auto content = std::make_shared<Content>(std::exchange(content_, {}));
      const auto end = [content, settle](std::exception_ptr failure) {
        std::thread([content = std::exchange(*content, {}), settle, failure]() mutable {
          if (content.group) {
            content.session->remove(*content.group);
            content.group->close();
          }
          content = {};
          settle(failure, nullptr);
        }).detach();
      };
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
      content_.session->report(
          content_.group->name(), 0,
          format("Rank {} gave up: {}.", content_.session->options().rank, reason));
      return info.Env().Undefined();
    });
  }

  Content content_;
};

}  // namespace

Napi::Function define_communicator(Napi::Env env) { return CommunicatorWrap::define(env); }
Napi::Function define_work(Napi::Env env) { return WorkWrap::define(env); }

}  // namespace llamaforge

// A plugin whose collectives never end and abort slowly. At the end of the process it is torn down,
// as NCCL and CUDA are. A later call is a mistake and is reported on stderr.
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "runtime/plugin.h"

using namespace llamaforge;

namespace {

void say(const char* text) {
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) std::abort();
}

struct Library {
  bool loaded = true;
  ~Library() { loaded = false; }
} library;

void call(const char* what) {
  if (library.loaded) return;
  say(what);
  say(" after the library was gone\n");
  std::abort();
}

class FakeStream final : public Stream {
 public:
  void submit(const char*, std::function<void(Stream&)> work) override { work(*this); }
  void wait(std::function<void(std::exception_ptr)> done) override { done(nullptr); }
  size_t backlog() const override { return 0; }
  void when_backlog_at_most(size_t, std::function<void()> done) override { done(); }
  void* allocate(size_t bytes) override { return ::operator new(bytes); }
  void release(void* memory, size_t) noexcept override { ::operator delete(memory); }
  void copy_to_host(void* host, const void* device, size_t bytes, std::shared_ptr<void>) override {
    std::memcpy(host, device, bytes);
  }
  void copy_from_host(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  MemoryStats memory() const override { return {}; }
  void reset_peak() override {}
  void set_memory_limit(uint64_t) override {}
  int threads() const override { return 1; }
  void close() override {}
  void replay(std::shared_ptr<Recording>) override {}
};

class EndlessWork final : public CollectiveWork {
 public:
  void wait() override {}
  void when_done(std::function<void(std::exception_ptr)>) override {}
};

class SlowToAbort final : public Collectives {
 public:
  std::shared_ptr<CollectiveWork> enqueue(CollectiveCall) override {
    return std::make_shared<EndlessWork>();
  }
  CollectiveProgress progress() override {
    call("progress");
    return {1, 0, ""};
  }
  void abort(const std::string&) override {
    for (int i = 0; i < 100; ++i) {
      call("abort");
      std::this_thread::sleep_for(std::chrono::milliseconds(8));
    }
    say("aborted\n");
  }
  std::shared_ptr<Timeline> make_timeline() override { return nullptr; }
  void follow(std::shared_ptr<Timeline>) override {}
  void close() override {}
  std::string description() const override { return "slow to abort"; }
};

const Plugin plugin = {
    .build_id = nullptr,
    .ops = nullptr,
    .device_count = [] { return 1; },
    .describe = [](int) -> GpuDescription {
      return {"A GPU", 9, 0, 80u << 20};
    },
    .free_bytes = [](int) -> uint64_t { return 80u << 20; },
    .open = [](int) -> std::shared_ptr<Stream> { return std::make_shared<FakeStream>(); },
    .libraries = [] { return std::vector<std::string>{}; },
    .load_collectives = [] {},
    .collectives_id = [] { return std::string("an id"); },
    .open_collectives = [](const std::shared_ptr<Stream>&, const CollectivesOptions&)
        -> std::shared_ptr<Collectives> { return std::make_shared<SlowToAbort>(); }};

}  // namespace

extern "C" const Plugin* llamaforge_cuda_plugin(const char*) { return &plugin; }

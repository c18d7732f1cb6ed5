// The host side of a GPU's stream against a device that stands still while a gate is closed. Prints "ok", or what was wrong.
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/cuda_stream.h"
#include "cuda/gemm_context.h"

namespace llamaforge::cuda {

const CublasLt& cublaslt() {
  static const CublasLt none = {};
  return none;
}
GemmContext::GemmContext(CudaStream& cuda) : cuda_(cuda), lt_(cublaslt()), cache_("") {}
GemmContext::~GemmContext() = default;
GemmCache::GemmCache(std::string) {}

}  // namespace llamaforge::cuda

using llamaforge::Stream;
using llamaforge::cuda::CompletionQueue;
using llamaforge::cuda::CudaStream;

namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr std::chrono::seconds kSoon{20};

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

void await(const char* what, const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kSoon;
  while (!condition()) {
    require(std::chrono::steady_clock::now() < deadline, what);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void synchronize(CudaStream& stream) {
  std::promise<std::exception_ptr> done;
  stream.wait([&](std::exception_ptr failure) { done.set_value(failure); });
  require(done.get_future().get() == nullptr, "the stream reports a failure");
}

// Longer than a chunk of a copy: several copies are on their way.
void a_copy_holds_what_it_writes_to() {
  constexpr size_t kBytes = 40 * kMiB;
  CudaStream stream(0);
  std::vector<char> device(kBytes, 'x');
  auto host = std::make_shared<std::vector<char>>(kBytes);
  const std::weak_ptr<std::vector<char>> weak = host;
  gpu.set_open(false);
  stream.submit("readInto", [&](Stream& on) { on.copy_to_host(host->data(), device.data(), kBytes, host); });
  host.reset();
  require(!weak.expired(), "a copy on its way does not hold its target");
  gpu.set_open(true);
  synchronize(stream);
  await("the target is held for ever", [&] { return weak.expired(); });
}

// Another thread gives memory back while one waits for the device: that of the watchdog, which must get on to end what hangs.
void memory_goes_back_while_another_thread_waits_for_some() {
  CudaStream stream(0);
  void* large = stream.allocate(40 * kMiB);
  void* kept = stream.allocate(512);
  stream.release(large, 40 * kMiB);
  gpu.room = kMiB;
  gpu.set_open(false);
  auto refilled = std::async(std::launch::async, [&] { return stream.allocate(60 * kMiB); });
  gpu.await_waiting(1);
  auto released = std::async(std::launch::async, [&] { stream.release(kept, 512); });
  const bool on = released.wait_for(kSoon) == std::future_status::ready;
  require(on, "nothing can be released while a thread waits for memory");
  gpu.room = 30 * kMiB;  // with the segment that lies unused it is enough
  gpu.set_open(true);
  void* memory = refilled.get();
  require(memory != nullptr, "no memory, though an unused segment was there to give back");
  stream.release(memory, 60 * kMiB);
  stream.trim();
  require(stream.memory().cached == 0, "trim keeps memory");
  gpu.room = SIZE_MAX;
}

void a_queue_ends_on_its_own_thread() {
  struct Group {
    CompletionQueue queue{0};
  };
  auto group = std::make_shared<Group>();
  const std::weak_ptr<Group> weak = group;
  gpu.set_open(false);
  int runs = 0;
  group->queue.when_reached(nullptr, [group, &runs](cudaError_t) { ++runs; });
  group.reset();
  require(!weak.expired(), "the action does not hold its group");
  gpu.set_open(true);
  await("the group lives for ever", [&] { return weak.expired(); });
  require(runs == 1, "the action did not run once");
}

}  // namespace

int main() {
  a_copy_holds_what_it_writes_to();
  memory_goes_back_while_another_thread_waits_for_some();
  for (int i = 0; i < 200; ++i) a_queue_ends_on_its_own_thread();
  std::printf("ok\n");
}

// The host side of a GPU's stream, with a device that stands still while a gate is closed. Prints
// "ok" or the mistake.
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/gemm/gemm_context.h"
#include "cuda/runtime/cuda_stream.h"
#include "cuda/runtime/small_copy.h"

namespace llamaforge::cuda {

const CublasLt& cublaslt() {
  static const CublasLt none = {};
  return none;
}
GemmContext::GemmContext(CudaStream& cuda) : cuda_(cuda), lt_(cublaslt()), cache_("") {}
GemmContext::~GemmContext() = default;
GemmCache::GemmCache(std::string) {}

// Kernels, of which the stand-in has none.
void copy_small(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream);
}
void take_record(FaultRecord* to, FaultRecord* record, cudaStream_t stream) {
  copy_small(to, record, sizeof *to, stream);
  cudaMemsetAsync(record, 0, sizeof *record, stream);
}

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

// The copy is longer than a chunk, so several copies are in flight.
void a_copy_holds_what_it_writes_to() {
  constexpr size_t kBytes = 40 * kMiB;
  CudaStream stream(0);
  std::vector<char> device(kBytes, 'x');
  auto host = std::make_shared<std::vector<char>>(kBytes);
  const std::weak_ptr<std::vector<char>> weak = host;
  gpu.set_open(false);
  stream.submit("readInto", [&device, host](Stream& on) {
    on.copy_to_host(host->data(), device.data(), kBytes, host);
  });
  host.reset();
  await("the copy is never launched", [&] { return stream.backlog() == 0; });
  require(!weak.expired(), "a copy on its way does not hold its target");
  gpu.set_open(true);
  synchronize(stream);
  await("the target is held for ever", [&] { return weak.expired(); });
}

// The watchdog's thread frees memory while another thread waits for the device. It must not block,
// because it ends operations that hang.
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
  gpu.room = 30 * kMiB;  // enough together with the unused segment
  gpu.set_open(true);
  void* memory = refilled.get();
  require(memory != nullptr, "no memory, though an unused segment was there to give back");
  stream.release(memory, 60 * kMiB);
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

// Neither the device nor a launch blocks the submitting thread. That thread learns how far it is
// ahead.
void submitting_never_waits_for_a_launch() {
  CudaStream stream(0);
  std::promise<void> begun, let_on;
  int order = 0;
  stream.submit("slow", [&](Stream&) {
    begun.set_value();
    let_on.get_future().wait();
    require(order++ == 0, "the first op is not the first");
  });
  begun.get_future().wait();
  for (int i = 1; i <= 100; ++i) {
    stream.submit("quick", [&order, i](Stream&) { require(order++ == i, "ops are out of order"); });
  }
  require(stream.backlog() == 101, "the backlog is miscounted");
  std::promise<void> few;
  stream.when_backlog_at_most(50, [&] {
    require(order >= 51 && stream.backlog() <= 50, "the backlog is said to be less than it is");
    few.set_value();
  });
  let_on.set_value();
  require(few.get_future().wait_for(kSoon) == std::future_status::ready,
          "nobody tells that the backlog is less");
  synchronize(stream);
  require(order == 101, "some op did not run");
}

// The next wait reports the first failure with its op's name. Later ops do not run; later actions
// do.
void a_failure_stops_ops_until_the_next_wait() {
  CudaStream stream(0);
  bool acted = false, ran = false;
  stream.submit("broken", [](Stream&) { throw llamaforge::Error("ERR_SHAPE", "too odd"); });
  stream.submit("behind", [&](Stream&) { ran = true; });
  stream.in_order([&] { acted = true; });
  std::promise<std::exception_ptr> done;
  stream.wait([&](std::exception_ptr failure) { done.set_value(failure); });
  try {
    std::rethrow_exception(done.get_future().get());
  } catch (const llamaforge::Error& error) {
    require(error.code() == "ERR_SHAPE" && std::string(error.what()) == "[broken] too odd",
            error.what());
  }
  require(acted && !ran, "a failure stops actions, or no ops");
  stream.submit("after", [&](Stream&) { ran = true; });
  synchronize(stream);
  require(ran, "the stream does not work again after the wait that reported a failure");
}

// Submitted work that did not run is dropped together with the tensors that it holds.
void closing_drops_what_waits() {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> weak = held;
  CudaStream stream(0);
  std::promise<void> begun;
  stream.submit("slow", [&](Stream&) {
    begun.set_value();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  begun.get_future().wait();
  stream.submit("dropped", [held](Stream&) { require(false, "an op ran after close()"); });
  held.reset();
  stream.close();
  require(weak.expired(), "close() keeps what was never run");
  try {
    stream.submit("late", [](Stream&) {});
    require(false, "a closed stream takes work");
  } catch (const llamaforge::Error& error) {
    require(error.code() == "ERR_DEVICE", error.what());
  }
}

}  // namespace

int main() {
  submitting_never_waits_for_a_launch();
  a_failure_stops_ops_until_the_next_wait();
  closing_drops_what_waits();
  a_copy_holds_what_it_writes_to();
  memory_goes_back_while_another_thread_waits_for_some();
  for (int i = 0; i < 200; ++i) a_queue_ends_on_its_own_thread();
  std::printf("ok\n");
}

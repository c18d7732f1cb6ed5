#include "cuda/comm/nccl_collectives.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "cuda/comm/cuda_timeline.h"
#include "cuda/comm/event_pool.h"
#include "cuda/comm/nccl.h"
#include "cuda/runtime/completion_queue.h"
#include "cuda/runtime/cuda_stream.h"

namespace llamaforge::cuda {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kFinishTime{10'000};

int type_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return nccl::kFloat32;
    case DType::bf16: return nccl::kBfloat16;
    case DType::i32: return nccl::kInt32;
    case DType::f8e4m3:
    case DType::f8e5m2: break;
  }
  return -1;
}

class NcclCollectives final : public Collectives,
                              public std::enable_shared_from_this<NcclCollectives> {
 public:
  NcclCollectives(const std::shared_ptr<Stream>& stream, const CollectivesOptions& options);
  ~NcclCollectives() override;

  std::shared_ptr<CollectiveWork> enqueue(CollectiveCall call) override;
  CollectiveProgress progress() override;
  void abort(const std::string& why) override;
  std::shared_ptr<Timeline> make_timeline() override {
    return std::make_shared<CudaTimeline>(owner_);
  }
  void follow(std::shared_ptr<Timeline> timeline) override {
    stream_.in_order([self = shared_from_this(), timeline = std::static_pointer_cast<CudaTimeline>(
                                                     timeline)] { self->timeline_ = timeline; });
  }
  void close() override;
  std::string description() const override {
    return options_.size > 1 ? nccl_library().description() : "none: one rank";
  }

 private:
  class Work;
  // The launcher's result for a collective: the event of its end, or the reason why it never ran.
  struct Launched {
    Event ended;
    std::string failure = "an operation before it failed on this rank";
    std::shared_ptr<CudaTimeline> timeline;  // may be null
  };
  // A collective that was given to the device.
  struct Flight {
    Event started, ended;
    std::shared_ptr<CollectiveCall>
        call;  // its tensors, until its work was waited for or has ended
  };

  // Polls until the communicator has finished the call. Throws ERR_PEER on its failure, on an
  // abort, or at the deadline.
  void settle(const char* what, std::optional<Clock::time_point> deadline = std::nullopt);
  // Checks the result of a call; a call in progress is settled first.
  void check(nccl::Result result, const char* what);
  void launch(const CollectiveCall& call, cudaStream_t stream);
  void launch_alone(const CollectiveCall& call, cudaStream_t stream);
  Event fly(const std::shared_ptr<CollectiveCall>& call);
  std::string words_of(nccl::Result result, const char* what);
  std::string aborted();

  const std::shared_ptr<Stream> owner_;
  CudaStream& stream_;
  const CollectivesOptions options_;
  const std::shared_ptr<EventPool> events_ = std::make_shared<EventPool>();
  std::unique_ptr<CompletionQueue> completions_;
  std::shared_ptr<CudaTimeline> timeline_;  // used on the launcher's thread only
  int* token_ = nullptr;                    // the number that a barrier sums

  std::mutex communicator_mutex_;  // NCCL takes one call at a time
  nccl::Communicator communicator_ = nullptr;

  std::mutex mutex_;
  std::deque<Flight> flights_;
  CollectiveProgress progress_;
  std::string aborted_;
  std::atomic<bool> is_aborted_{false};
};

// Makes the compute stream wait for the event at the collective's end. This code runs on the
// launcher in the order of the calls, so the collective has been launched by then.
class NcclCollectives::Work final : public CollectiveWork {
 public:
  Work(std::shared_ptr<NcclCollectives> group, std::shared_ptr<Launched> launched,
       std::shared_ptr<CollectiveCall> call)
      : group_(std::move(group)),
        launched_(std::move(launched)),
        call_(std::move(call)),
        kind_(call_->kind) {}

  void wait() override {
    group_->stream_.submit(name_of(kind_),
                           [group = group_, launched = launched_, call = call_](Stream&) {
                             if (!launched->ended)
                               return;  // it never ran; the next wait reports the earlier failure
                             if (const std::string why = group->aborted(); !why.empty())
                               throw Error("ERR_PEER", why);
                             const cudaStream_t compute = group->stream_.compute();
                             const auto& timeline = launched->timeline;
                             const size_t start = timeline ? timeline->at(compute) : 0;
                             LF_CUDA_CHECK(cudaStreamWaitEvent(compute, launched->ended.get()));
                             if (timeline) {
                               timeline->add({group->options_.name, name_of(call->kind),
                                              call->bytes(), true, start, timeline->at(compute)});
                             }
                             // From here on, the order of the compute stream protects the memory.
                             const std::lock_guard lock(group->mutex_);
                             call->input = call->output = {};
                           });
  }

  void when_done(std::function<void(std::exception_ptr)> done) override {
    try {
      group_->stream_.in_order([group = group_, done] {
        try {
          group->completions_->when_reached(
              group->stream_.communication(), [group, done](cudaError_t error) {
                std::exception_ptr failure;
                if (const std::string why = group->aborted(); !why.empty()) {
                  failure = std::make_exception_ptr(Error("ERR_PEER", why));
                } else if (error != cudaSuccess) {
                  failure = std::make_exception_ptr(error_of(error, "a collective"));
                }
                done(failure);
              });
        } catch (...) {
          done(std::current_exception());
        }
      });
    } catch (const Error&) {
      done(std::current_exception());
    }
  }

 private:
  const std::shared_ptr<NcclCollectives> group_;
  const std::shared_ptr<Launched> launched_;
  const std::shared_ptr<CollectiveCall> call_;
  const CollectiveKind kind_;
};

NcclCollectives::NcclCollectives(const std::shared_ptr<Stream>& stream,
                                 const CollectivesOptions& options)
    : owner_(stream), stream_(on_cuda(*stream)), options_(options) {
  LF_CUDA_CHECK(cudaSetDevice(stream_.index()));
  completions_ = std::make_unique<CompletionQueue>(stream_.index());
  if (options.size == 1) return;
  const Nccl& library = nccl_library();
  LF_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&token_), sizeof *token_));
  LF_CUDA_CHECK(cudaMemset(token_, 0, sizeof *token_));
  nccl::UniqueId id;
  if (options.id.size() != sizeof id)
    throw Error("ERR_PEER", "the id of the NCCL group is damaged");
  std::memcpy(&id, options.id.data(), sizeof id);
  nccl::Config config;
  config.blocking = 0;
  const auto deadline = Clock::now() + options.start_timeout;
  const nccl::Result result =
      library.CommInitRankConfig(&communicator_, options.size, id, options.rank, &config);
  try {
    if (result != nccl::kSuccess && result != nccl::kInProgress)
      throw Error("ERR_PEER", words_of(result, "ncclCommInitRank"));
    settle("to connect the ranks", deadline);
  } catch (const Error& error) {
    if (communicator_) library.CommAbort(communicator_);
    communicator_ = nullptr;
    cudaFree(token_);
    throw Error(error.code(), format("group {}: {}\nNCCL_DEBUG=INFO makes NCCL tell more; "
                                     "NCCL_SOCKET_IFNAME names the network "
                                     "interface to use",
                                     options.name, error.what()));
  }
}

NcclCollectives::~NcclCollectives() {
  cudaSetDevice(stream_.index());
  completions_.reset();
  close();
  flights_.clear();
  cudaFree(token_);
}

void NcclCollectives::close() {
  cudaSetDevice(stream_.index());
  const auto end = [this](nccl::Result (*function)(nccl::Communicator)) {
    std::lock_guard lock(communicator_mutex_);
    if (communicator_) function(communicator_);
    communicator_ = nullptr;
  };
  try {
    {
      std::lock_guard lock(communicator_mutex_);
      if (!communicator_) return;
      const nccl::Result result = nccl_library().CommFinalize(communicator_);
      if (result != nccl::kSuccess && result != nccl::kInProgress)
        throw Error("ERR_PEER", words_of(result, "ncclCommFinalize"));
    }
    settle("to finish", Clock::now() + kFinishTime);
    end(nccl_library().CommDestroy);
  } catch (const Error&) {
    end(nccl_library().CommAbort);
  }
}

std::string NcclCollectives::words_of(nccl::Result result, const char* what) {
  const Nccl& library = nccl_library();
  const char* last = library.GetLastError(communicator_);
  return format("NCCL failed {}: {}{}{}", what, library.GetErrorString(result),
                last && *last ? ": " : "", last ? last : "");
}

std::string NcclCollectives::aborted() {
  std::lock_guard lock(mutex_);
  return aborted_;
}

void NcclCollectives::settle(const char* what, std::optional<Clock::time_point> deadline) {
  for (int round = 0;; ++round) {
    nccl::Result state = nccl::kSuccess;
    {
      std::lock_guard lock(communicator_mutex_);
      if (is_aborted_ || !communicator_) throw Error("ERR_PEER", aborted());
      const nccl::Result result = nccl_library().CommGetAsyncError(communicator_, &state);
      if (result != nccl::kSuccess) state = result;
    }
    if (state == nccl::kSuccess) return;
    if (state != nccl::kInProgress) throw Error("ERR_PEER", words_of(state, what));
    if (deadline && Clock::now() > *deadline) {
      throw Error("ERR_PEER", format("NCCL did not manage {} within {} s", what,
                                     static_cast<double>(options_.start_timeout.count()) / 1000));
    }
    // A launch settles within microseconds, except the first of its kind, which makes connections.
    if (round > 100) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

void NcclCollectives::check(nccl::Result result, const char* what) {
  if (result == nccl::kInProgress) return settle(what);
  if (result != nccl::kSuccess) throw Error("ERR_PEER", words_of(result, what));
}

void NcclCollectives::launch(const CollectiveCall& call, cudaStream_t stream) {
  const Nccl& library = nccl_library();
  const int type = type_of(call.output.dtype),
            reduction = call.average ? nccl::kAverage : nccl::kSum;
  const bool is_barrier = call.kind == CollectiveKind::barrier;
  void* output = is_barrier ? token_ : call.output.raw();
  const void* input = is_barrier ? token_ : call.input.storage ? call.input.raw() : output;
  const auto elements = [](const Tensor& tensor) { return static_cast<size_t>(tensor.numel()); };
  nccl::Result result = nccl::kSuccess;
  {
    std::lock_guard lock(communicator_mutex_);
    if (is_aborted_ || !communicator_) throw Error("ERR_PEER", aborted());
    switch (call.kind) {
      case CollectiveKind::all_reduce:
        result = library.AllReduce(input, output, elements(call.output), type, reduction,
                                   communicator_, stream);
        break;
      case CollectiveKind::reduce_scatter:
        result = library.ReduceScatter(input, output, elements(call.output), type, reduction,
                                       communicator_, stream);
        break;
      case CollectiveKind::all_gather:
        result =
            library.AllGather(input, output, elements(call.input), type, communicator_, stream);
        break;
      case CollectiveKind::broadcast:
        result = library.Broadcast(input, output, elements(call.output), type, call.root,
                                   communicator_, stream);
        break;
      case CollectiveKind::barrier:
        result =
            library.AllReduce(token_, token_, 1, nccl::kInt32, nccl::kSum, communicator_, stream);
        break;
    }
  }
  check(result, name_of(call.kind));
}

void NcclCollectives::launch_alone(const CollectiveCall& call, cudaStream_t stream) {
  if (call.kind == CollectiveKind::barrier || !call.input.storage ||
      call.input.raw() == call.output.raw())
    return;
  LF_CUDA_CHECK(cudaMemcpyAsync(call.output.raw(), call.input.raw(), call.output.bytes(),
                                cudaMemcpyDeviceToDevice, stream));
}

// Launches a collective, on the launcher's thread. Returns the event of the collective's end.
Event NcclCollectives::fly(const std::shared_ptr<CollectiveCall>& call) {
  if (call->input.storage && !call->input.storage->computed()) {
    throw Error("ERR_NATIVE",
                "its input was never computed (an earlier operation failed, or nothing wrote it)");
  }
  if (call->output.storage) call->output.storage->allocate();
  const Event ready = events_->take();
  const Event started = events_->take();
  Event end = events_->take();
  const cudaStream_t communication = stream_.communication();
  LF_CUDA_CHECK(cudaEventRecord(ready.get(), stream_.compute()));
  LF_CUDA_CHECK(cudaStreamWaitEvent(communication, ready.get()));
  LF_CUDA_CHECK(cudaEventRecord(started.get(), communication));
  const size_t begin = timeline_ ? timeline_->at(communication) : 0;
  {
    // The flight is recorded before the launch, which may wait for other ranks, so that the
    // watchdog sees it.
    std::lock_guard lock(mutex_);
    flights_.push_back({started, nullptr, call});
  }
  if (options_.size > 1) {
    launch(*call, communication);
  } else {
    launch_alone(*call, communication);
  }
  // The timeline's end comes before the event that releases the compute stream, so that no wait
  // ends before the collective that it waited for.
  if (timeline_) {
    timeline_->add({options_.name, name_of(call->kind), call->bytes(), false, begin,
                    timeline_->at(communication)});
  }
  LF_CUDA_CHECK(cudaEventRecord(end.get(), communication));
  std::lock_guard lock(mutex_);
  flights_.back().ended = end;
  return end;
}

std::shared_ptr<CollectiveWork> NcclCollectives::enqueue(CollectiveCall request) {
  auto call = std::make_shared<CollectiveCall>(std::move(request));
  auto launched = std::make_shared<Launched>();
  const auto self = shared_from_this();
  stream_.submit(name_of(call->kind), [self, call, launched](Stream&) {
    launched->timeline = self->timeline_;
    try {
      launched->ended = self->fly(call);
      launched->failure.clear();
    } catch (const Error& error) {
      launched->failure = error.what();
      throw;
    }
  });
  // An earlier operation's failure skips the work above, but the other ranks must hear of it.
  stream_.in_order([self, call, launched] {
    if (launched->failure.empty()) return;
    std::lock_guard lock(self->mutex_);
    std::string& failure = self->progress_.failure;
    const std::string& why = self->aborted_.empty() ? launched->failure : self->aborted_;
    if (failure.empty()) failure = format("{}: {}", name_of(call->kind), why);
  });
  return std::make_shared<Work>(self, launched, call);
}

CollectiveProgress NcclCollectives::progress() {
  std::vector<CollectiveCall> over;  // released after the lock
  std::vector<Event> events;
  cudaSetDevice(stream_.index());
  nccl::Result state = nccl::kSuccess;
  if (communicator_mutex_.try_lock()) {
    // A launch that holds the mutex for long checks for errors itself.
    if (communicator_ && !is_aborted_) nccl_library().CommGetAsyncError(communicator_, &state);
    communicator_mutex_.unlock();
  }
  std::lock_guard lock(mutex_);
  while (!flights_.empty()) {
    Flight& flight = flights_.front();
    if (progress_.started == progress_.completed) {
      if (cudaEventQuery(flight.started.get()) != cudaSuccess) break;
      ++progress_.started;
    }
    if (!flight.ended || cudaEventQuery(flight.ended.get()) != cudaSuccess) break;
    ++progress_.completed;
    over.push_back(std::move(*flight.call));
    events.push_back(std::move(flight.ended));
    events.push_back(std::move(flight.started));
    flights_.pop_front();
  }
  cudaGetLastError();  // "not ready" is not an error
  if (state != nccl::kSuccess && state != nccl::kInProgress && progress_.failure.empty()) {
    progress_.failure = words_of(state, "between collectives");
  }
  return progress_;
}

void NcclCollectives::abort(const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (!aborted_.empty()) return;
    aborted_ = why;
  }
  std::lock_guard lock(communicator_mutex_);
  is_aborted_ = true;
  if (!communicator_) return;
  cudaSetDevice(stream_.index());
  nccl_library().CommAbort(communicator_);
  communicator_ = nullptr;
}

}  // namespace

std::string nccl_id() {
  nccl::UniqueId id;
  const Nccl& library = nccl_library();
  if (const nccl::Result result = library.GetUniqueId(&id); result != nccl::kSuccess) {
    const char* last = library.GetLastError(nullptr);
    throw Error("ERR_PEER", format("NCCL could not begin a group: {}: {}",
                                   library.GetErrorString(result), last ? last : ""));
  }
  return {id.bytes, sizeof id.bytes};
}

std::shared_ptr<Collectives> open_collectives(const std::shared_ptr<Stream>& stream,
                                              const CollectivesOptions& options) {
  return std::make_shared<NcclCollectives>(stream, options);
}

}  // namespace llamaforge::cuda

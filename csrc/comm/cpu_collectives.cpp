#include "comm/cpu_collectives.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>

namespace llamaforge::comm {

namespace {

constexpr size_t kPiece = size_t{2} << 20;  // most bytes of a message that a sum must buffer
constexpr size_t kTile = 2048;              // elements added at a time

}  // namespace

// ---- algorithms ---------------------------------------------------------------------------------

DirectAlgorithms::DirectAlgorithms(std::unique_ptr<Transport> transport, int rank, int size,
                                   std::vector<uint32_t> ranks)
    : transport_(std::move(transport)), rank_(rank), size_(size), ranks_(std::move(ranks)) {}

std::string DirectAlgorithms::description() const {
  return transport_ ? transport_->description() : "none: one rank";
}

void DirectAlgorithms::abort() {
  if (transport_) transport_->abort();
}

// Compares the calls of all ranks before a byte of data moves, because a difference would give a
// wrong result or a hang.
void DirectAlgorithms::agree(const CollectiveCall& call) {
  struct Header {
    uint64_t sequence;
    int64_t count;
    int32_t kind, dtype, average, root;
    bool operator==(const Header&) const = default;
    std::string text() const {
      if (kind < 0 || kind >= kCollectiveKinds) return "something else";
      const auto as = static_cast<CollectiveKind>(kind);
      if (as == CollectiveKind::barrier) return format("#{} {}", sequence, name_of(as));
      std::string words = format("#{} {} of {} {}", sequence, name_of(as), count,
                                 name_of(static_cast<DType>(dtype)));
      if (average) words += ", averaged";
      if (as == CollectiveKind::broadcast) words += format(" from rank {} of the group", root);
      return words;
    }
  };
  const bool is_barrier = call.kind == CollectiveKind::barrier;
  Header own = {sequence_,
                call.count(),
                static_cast<int32_t>(call.kind),
                is_barrier ? 0 : static_cast<int32_t>(call.output.dtype),
                call.average,
                call.root};
  std::vector<Header> theirs(static_cast<size_t>(size_));
  std::vector<Transport::Piece> sends, receives;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    sends.push_back({peer, &own, sizeof own});
    receives.push_back({peer, &theirs[static_cast<size_t>(peer)], sizeof own});
  }
  transport_->exchange(sends, receives);
  for (int peer = 0; peer < size_; ++peer) {
    const Header& other = theirs[static_cast<size_t>(peer)];
    if (peer == rank_ || other == own) continue;
    throw Error(
        "ERR_PEER",
        format("the ranks do not call the same collectives: this rank calls {}, rank {} calls {}",
               own.text(), ranks_[static_cast<size_t>(peer)], other.text()));
  }
}

void DirectAlgorithms::run(const CollectiveCall& call) {
  ++sequence_;
  if (size_ > 1) agree(call);
  switch (call.kind) {
    case CollectiveKind::all_reduce:
      return all_reduce(static_cast<char*>(call.output.raw()),
                        static_cast<size_t>(call.output.numel()), call.output.dtype, call.average);
    case CollectiveKind::reduce_scatter:
      return reduce_scatter(
          static_cast<const char*>(call.input.raw()), static_cast<char*>(call.output.raw()),
          static_cast<size_t>(call.output.numel()), call.output.dtype, call.average);
    case CollectiveKind::all_gather:
      return all_gather(static_cast<const char*>(call.input.raw()),
                        static_cast<char*>(call.output.raw()), call.input.bytes());
    case CollectiveKind::broadcast:
      return broadcast(static_cast<char*>(call.output.raw()), call.output.bytes(), call.root);
    case CollectiveKind::barrier: return;  // the ranks have agreed on the call, so all are here
  }
}

namespace {

// Adds pieces in a loop of their own element type; the sum stays in fp32 until it is complete.
template <class T>
void add_typed(const std::vector<const T*>& pieces, T* output, size_t count, float divisor) {
  float sum[kTile];
  for (size_t start = 0; start < count; start += kTile) {
    const size_t n = std::min(kTile, count - start);
    for (size_t i = 0; i < n; ++i) sum[i] = to_float(pieces[0][start + i]);
    for (size_t piece = 1; piece < pieces.size(); ++piece) {
      const T* from = pieces[piece] + start;
      for (size_t i = 0; i < n; ++i) sum[i] += to_float(from[i]);
    }
    if (divisor != 1) {
      for (size_t i = 0; i < n; ++i) sum[i] /= divisor;
    }
    for (size_t i = 0; i < n; ++i) output[start + i] = from_float<T>(sum[i]);
  }
}

}  // namespace

void DirectAlgorithms::add_pieces(const char* own, char* output, size_t count, DType dtype,
                                  bool average) {
  const size_t bytes = count * size_of(dtype);
  const auto add = [&]<class T>(T*) {
    std::vector<const T*> pieces;
    const char* next = received_.data();
    for (int peer = 0; peer < size_; ++peer) {
      pieces.push_back(reinterpret_cast<const T*>(peer == rank_ ? own : next));
      if (peer != rank_) next += bytes;
    }
    add_typed(pieces, reinterpret_cast<T*>(output), count,
              average ? static_cast<float>(size_) : 1.0f);
  };
  if (dtype == DType::f32) {
    add(static_cast<float*>(nullptr));
  } else if (dtype == DType::bf16) {
    add(static_cast<bfloat16*>(nullptr));
  } else {
    throw Error("ERR_DTYPE", format("expected f32 or bf16, got {}", name_of(dtype)));
  }
}

// count: elements of the output. The sum runs in parts, so that the received pieces need little
// memory.
void DirectAlgorithms::reduce_scatter(const char* input, char* output, size_t count, DType dtype,
                                      bool average) {
  const size_t width = size_of(dtype);
  const size_t most = std::min(count, kPiece / width);
  received_.resize(static_cast<size_t>(size_ - 1) * most * width);
  std::vector<Transport::Piece> sends, receives;
  for (size_t start = 0; start < count; start += most) {
    const size_t n = std::min(most, count - start);
    const auto part_of = [&](int rank) {
      return input + (static_cast<size_t>(rank) * count + start) * width;
    };
    sends.clear();
    receives.clear();
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      receives.push_back({peer, received_.data() + receives.size() * n * width, n * width});
      sends.push_back({peer, const_cast<char*>(part_of(peer)), n * width});
    }
    if (transport_) transport_->exchange(sends, receives);
    add_pieces(part_of(rank_), output + start * width, n, dtype, average);
  }
}

// Runs in blocks: each rank sums its part of a block and sends the sum to the others.
void DirectAlgorithms::all_reduce(char* data, size_t count, DType dtype, bool average) {
  if (size_ == 1) return;
  const size_t width = size_of(dtype), ranks = static_cast<size_t>(size_);
  const size_t most = ranks * (kPiece / width);
  std::vector<Transport::Piece> sends, receives;
  for (size_t start = 0; start < count; start += most) {
    const size_t n = std::min(most, count - start);
    const size_t part = (n + ranks - 1) / ranks;
    const auto begin = [&](int rank) { return std::min(n, static_cast<size_t>(rank) * part); };
    const auto at = [&](int rank) { return data + (start + begin(rank)) * width; };
    const auto length = [&](int rank) { return begin(rank + 1) - begin(rank); };
    received_.resize((ranks - 1) * part * width);
    sends.clear();
    receives.clear();
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      if (length(rank_) > 0) {
        receives.push_back({peer, received_.data() + receives.size() * length(rank_) * width,
                            length(rank_) * width});
      }
      if (length(peer) > 0) sends.push_back({peer, at(peer), length(peer) * width});
    }
    transport_->exchange(sends, receives);
    if (length(rank_) > 0) add_pieces(at(rank_), at(rank_), length(rank_), dtype, average);
    sends.clear();
    receives.clear();
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      if (length(peer) > 0) receives.push_back({peer, at(peer), length(peer) * width});
      if (length(rank_) > 0) sends.push_back({peer, at(rank_), length(rank_) * width});
    }
    transport_->exchange(sends, receives);
  }
}

// bytes: size of the input.
void DirectAlgorithms::all_gather(const char* input, char* output, size_t bytes) {
  std::vector<Transport::Piece> sends, receives;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    sends.push_back({peer, const_cast<char*>(input), bytes});
    receives.push_back({peer, output + static_cast<size_t>(peer) * bytes, bytes});
  }
  if (transport_) transport_->exchange(sends, receives);
  char* own = output + static_cast<size_t>(rank_) * bytes;
  if (own != input) std::memcpy(own, input, bytes);
}

// Sends along a binomial tree: the number of ranks that have the data doubles with each round.
void DirectAlgorithms::broadcast(char* data, size_t bytes, int root) {
  if (size_ == 1) return;
  const int own = (rank_ - root + size_) % size_;
  const auto peer_of = [&](int place) { return (place + root) % size_; };
  for (int have = 1; have < size_; have *= 2) {
    if (own < have) {
      if (own + have < size_) transport_->exchange({{peer_of(own + have), data, bytes}}, {});
    } else if (own < 2 * have) {
      transport_->exchange({}, {{peer_of(own - have), data, bytes}});
    }
  }
}

// ---- streams ------------------------------------------------------------------------------------

namespace {

// On the CPU both streams are threads, so the timeline uses their clock.
class CpuTimeline final : public Timeline, public std::enable_shared_from_this<CpuTimeline> {
 public:
  explicit CpuTimeline(std::shared_ptr<Stream> compute) : compute_(std::move(compute)) {}

  size_t mark() override {
    const size_t moment = reserve();
    // The stream may drop the work before it gets there.
    compute_->submit("timeline",
                     [self = shared_from_this(), moment](Stream&) { self->set(moment); });
    return moment;
  }
  // Records a moment on the thread that calls.
  size_t now() {
    const size_t moment = reserve();
    set(moment);
    return moment;
  }
  std::vector<double> times() override {
    std::lock_guard lock(mutex_);
    std::vector<double> times = moments_;
    for (double& time : times) time -= moments_.front();
    return times;
  }

 private:
  size_t reserve() {
    std::lock_guard lock(mutex_);
    moments_.push_back(NAN);
    return moments_.size() - 1;
  }
  void set(size_t moment) {
    const std::chrono::duration<double, std::milli> time =
        std::chrono::steady_clock::now().time_since_epoch();
    std::lock_guard lock(mutex_);
    moments_[moment] = time.count();
  }

  const std::shared_ptr<Stream> compute_;
  std::mutex mutex_;
  std::vector<double> moments_;
};

}  // namespace

std::shared_ptr<Timeline> CpuCollectives::make_timeline() {
  return std::make_shared<CpuTimeline>(compute_);
}

// A collective between the two streams: the compute stream makes its tensors ready, the
// communication stream runs and ends it.
class CpuCollectives::Work final : public CollectiveWork {
 public:
  Work(CollectiveCall call, const CpuCollectives& group)
      : call_(std::move(call)),
        bytes_(call_.bytes()),
        compute_(group.compute_),
        timeline_(std::static_pointer_cast<CpuTimeline>(group.timeline_)),
        group_(group.name_) {}

  void wait() override {
    // The compute stream's thread sleeps during the wait, as a GPU's stream does.
    std::shared_ptr<Work> self = self_.lock();
    compute_->submit(name_of(kind()), [self](Stream&) {
      self->record(true, [&] {
        std::unique_lock lock(self->mutex_);
        self->changed_.wait(lock, [&] { return self->ended_; });
      });
      if (self->failure_) std::rethrow_exception(self->failure_);
    });
  }

  // Runs `action`, and records its duration if a timeline follows.
  template <class Action>
  void record(bool waiting, const Action& action) {
    if (!timeline_) return action();
    const size_t start = timeline_->now();
    action();
    timeline_->add({group_, name_of(kind()), bytes_, waiting, start, timeline_->now()});
  }

  void when_done(std::function<void(std::exception_ptr)> done) override {
    std::exception_ptr failure;
    {
      std::lock_guard lock(mutex_);
      if (!ended_) {
        callbacks_.push_back(std::move(done));
        return;
      }
      failure = failure_;
    }
    done(failure);
  }

  CollectiveKind kind() const { return call_.kind; }
  const CollectiveCall& call() const { return call_; }
  void remember(const std::shared_ptr<Work>& self) { self_ = self; }

  // Called on the compute stream. An empty `failure` means that the tensors are ready.
  void set_ready(const std::string& failure) {
    std::lock_guard lock(mutex_);
    if (ready_) return;
    ready_ = true;
    not_ready_because_ = failure;
    changed_.notify_all();
  }
  // Returns the reason why the collective cannot run, or an empty string.
  std::string wait_until_ready() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_; });
    return not_ready_because_;
  }

  void end(std::exception_ptr failure) {
    // The tensors are released first, so that their memory is free when the waiting thread
    // continues.
    call_.input = call_.output = {};
    std::vector<std::function<void(std::exception_ptr)>> callbacks;
    {
      std::lock_guard lock(mutex_);
      if (ended_) return;
      ended_ = true;
      failure_ = failure;
      callbacks.swap(callbacks_);
    }
    changed_.notify_all();
    for (const auto& callback : callbacks) callback(failure);
  }

 private:
  CollectiveCall call_;
  const int64_t bytes_;
  const std::shared_ptr<Stream> compute_;
  const std::shared_ptr<CpuTimeline> timeline_;  // may be null
  const std::string group_;
  std::weak_ptr<Work> self_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false, ended_ = false;
  std::string not_ready_because_;
  std::exception_ptr failure_;
  std::vector<std::function<void(std::exception_ptr)>> callbacks_;
};

CpuCollectives::CpuCollectives(std::string name, std::shared_ptr<Stream> compute,
                               std::shared_ptr<CommunicationThread> thread,
                               std::unique_ptr<DirectAlgorithms> algorithms)
    : name_(std::move(name)),
      compute_(std::move(compute)),
      thread_(std::move(thread)),
      algorithms_(std::move(algorithms)),
      description_(algorithms_->description()) {}

CpuCollectives::~CpuCollectives() = default;

std::shared_ptr<CollectiveWork> CpuCollectives::enqueue(CollectiveCall call) {
  const char* op = name_of(call.kind);
  auto work = std::make_shared<Work>(std::move(call), *this);
  work->remember(work);
  // After an earlier failure the compute stream drops the work that follows. Dropping the work
  // destroys this object, which then reports the failure.
  struct Ready {
    explicit Ready(std::shared_ptr<Work> work) : work(std::move(work)) {}
    std::shared_ptr<Work> work;
    ~Ready() { work->set_ready("an operation before it failed on this rank"); }
  };
  auto ready = std::make_shared<Ready>(work);
  compute_->submit(op, [ready](Stream&) {
    const CollectiveCall& call = ready->work->call();
    if (call.input.storage && !call.input.storage->computed()) {
      throw Error(
          "ERR_NATIVE",
          "its input was never computed (an earlier operation failed, or nothing wrote it)");
    }
    if (call.output.storage) call.output.storage->allocate();
    ready->work->set_ready({});
  });
  ready.reset();
  thread_->submit([self = shared_from_this(), work] { self->run(*work); });
  return work;
}

void CpuCollectives::run(Work& work) {
  std::string why;
  {
    std::lock_guard lock(mutex_);
    why = aborted_;
  }
  std::exception_ptr failure;
  if (why.empty()) {
    why = work.wait_until_ready();
    {
      std::lock_guard lock(mutex_);
      ++progress_.started;
      if (!aborted_.empty()) why = aborted_;
    }
    if (why.empty()) {
      try {
        work.record(false, [&] { algorithms_->run(work.call()); });
      } catch (const std::exception& error) {
        why = error.what();
      }
    }
  }
  if (!why.empty()) {
    std::lock_guard lock(mutex_);
    // The verdict tells more than the error of the collective that it interrupted.
    if (!aborted_.empty()) why = aborted_;
    if (progress_.failure.empty()) progress_.failure = format("{}: {}", name_of(work.kind()), why);
    failure = std::make_exception_ptr(Error("ERR_PEER", why));
  } else {
    std::lock_guard lock(mutex_);
    ++progress_.completed;
  }
  work.end(failure);
}

CollectiveProgress CpuCollectives::progress() {
  std::lock_guard lock(mutex_);
  return progress_;
}

void CpuCollectives::abort(const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (!aborted_.empty()) return;
    aborted_ = why;
  }
  algorithms_->abort();
}

}  // namespace llamaforge::comm

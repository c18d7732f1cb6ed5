// Collectives between CPUs. The communication stream is a thread next to the compute stream's. The
// algorithms are direct: every rank sends each other rank its part in one message and adds the
// received parts in the order of the ranks, in fp32. That moves as few bytes as a ring does. An
// element's sum depends neither on its place in a tensor nor on how the tensor is cut up, so every
// rank and every run gets equal bits, and allReduce gives the same bits as reduceScatter followed
// by allGather.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/transport.h"
#include "runtime/collectives.h"
#include "runtime/stream.h"
#include "runtime/worker.h"

namespace llamaforge::comm {

// One thread, jobs in order: the communication stream, shared by the groups of a process. Its last
// owner may be a job.
class CommunicationThread {
 public:
  CommunicationThread() : worker_({.work = [](std::function<void()>& job) { job(); }}) {}
  void submit(std::function<void()> job) { worker_.push(std::move(job)); }

 private:
  Worker<std::function<void()>> worker_;
};

// The arithmetic and the messages, without streams.
class DirectAlgorithms {
 public:
  // transport: null for a group of one.
  DirectAlgorithms(std::unique_ptr<Transport> transport, int rank, int size,
                   std::vector<uint32_t> ranks);
  // Throws ERR_PEER, also if the ranks make different calls.
  void run(const CollectiveCall& call);
  void abort();
  std::string description() const;

 private:
  void agree(const CollectiveCall& call);
  void reduce_scatter(const char* input, char* output, size_t count, DType dtype, bool average);
  void all_reduce(char* data, size_t count, DType dtype, bool average);
  void all_gather(const char* input, char* output, size_t bytes);
  void broadcast(char* data, size_t bytes, int root);
  // output = own and the received pieces of `count` elements, added in the order of the ranks.
  void add_pieces(const char* own, char* output, size_t count, DType dtype, bool average);

  const std::unique_ptr<Transport> transport_;
  const int rank_, size_;
  const std::vector<uint32_t> ranks_;
  uint64_t sequence_ = 0;
  std::vector<char> received_;  // pieces of the other ranks, one after the other
};

class CpuCollectives final : public Collectives,
                             public std::enable_shared_from_this<CpuCollectives> {
 public:
  CpuCollectives(std::string name, std::shared_ptr<Stream> compute,
                 std::shared_ptr<CommunicationThread> thread,
                 std::unique_ptr<DirectAlgorithms> algorithms);
  ~CpuCollectives() override;

  std::shared_ptr<CollectiveWork> enqueue(CollectiveCall call) override;
  CollectiveProgress progress() override;
  void abort(const std::string& why) override;
  std::shared_ptr<Timeline> make_timeline() override;
  void follow(std::shared_ptr<Timeline> timeline) override { timeline_ = std::move(timeline); }
  void close() override {}  // the connections end with this object
  std::string description() const override { return description_; }

 private:
  class Work;
  void run(Work& work);

  const std::string name_;
  const std::shared_ptr<Stream> compute_;
  const std::shared_ptr<CommunicationThread> thread_;
  const std::unique_ptr<DirectAlgorithms> algorithms_;
  const std::string description_;
  std::shared_ptr<Timeline> timeline_;  // of the thread that submits
  std::mutex mutex_;
  CollectiveProgress progress_;
  std::string aborted_;
};

}  // namespace llamaforge::comm

// A rank's connection to the store. It has its own thread for reading and writing, so nothing here
// waits for JavaScript.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "comm/frame.h"

namespace llamaforge::comm {

struct StoreOptions {
  std::string host;
  int port = 0, rank = 0, world_size = 1;
  std::string token;
  Milliseconds timeout{0};
  bool one_host = false;  // all ranks are on this host
};

class StoreClient {
 public:
  // Called on the client's thread, or on the caller's if the store has failed already.
  using Reply = std::function<void(std::exception_ptr, std::string value)>;
  // Callbacks for the run's failure and for the store's status requests, both on the client's
  // thread.
  struct Events {
    std::function<void(std::string verdict)> failed;
    std::function<std::string()> status;
  };

  // Blocks until every rank has come. Throws ERR_PEER. `cancelled` ends the wait.
  StoreClient(const StoreOptions& options, Events events, const std::atomic<bool>& cancelled);
  ~StoreClient();
  StoreClient(const StoreClient&) = delete;
  StoreClient& operator=(const StoreClient&) = delete;

  void set(const std::string& key, std::string_view value, Reply reply);
  void get(const std::string& key, Milliseconds timeout, Reply reply);
  void add(const std::string& key, int64_t amount, Reply reply);  // reply value: 8 bytes
  void barrier(const std::string& name, Milliseconds timeout, Reply reply);
  void goodbye(Reply reply);

  // Blocking forms of set and get; not to be called on the client's thread.
  void set(const std::string& key, std::string_view value);
  std::string get(const std::string& key, Milliseconds timeout);

  // These messages have no reply.
  void check(const std::string& group, size_t size, uint64_t sequence, uint64_t hash,
             const std::string& description);
  void trouble(const std::string& group, uint64_t sequence, const std::string& text);

  // Fails every pending and later request with `why`.
  void fail(const std::string& why);
  // This host's address, as the other ranks can reach it.
  const std::string& local_address() const { return local_address_; }

 private:
  struct Request {
    Reply reply;
    Clock::time_point deadline;  // of the store's answer, which may be that time has run out
  };
  void join(const StoreOptions& options, const std::atomic<bool>& cancelled);
  void connect(const StoreOptions& options, const std::atomic<bool>& cancelled,
               Clock::time_point deadline, std::string& why);
  // Whether the store lets this rank in; false if it has no room now. Throws ERR_PEER if trying
  // again would not help.
  bool say_hello(const StoreOptions& options, const std::atomic<bool>& cancelled,
                 Clock::time_point deadline, std::string& why);
  void run();
  void handle(Message message);
  void request(MessageType type, std::string body, Milliseconds timeout, Reply reply);
  void post(MessageType type, std::string body);
  void expire();

  const Events events_;
  Socket socket_;
  std::string local_address_, place_;
  Wakeup wakeup_;
  std::string in_;

  std::mutex mutex_;
  std::string out_;
  std::map<uint64_t, Request> requests_;
  uint64_t next_id_ = 1;
  std::string failure_;
  bool left_ = false;         // goodbye was said
  bool server_left_ = false;  // rank 0 said goodbye

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace llamaforge::comm

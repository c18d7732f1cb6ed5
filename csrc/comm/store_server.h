// The store's server, a thread in rank 0. It holds keys, counters and barriers, and tracks the
// state of the ranks. It never blocks on a peer: a slow, silent or foreign peer costs a connection,
// not the run.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "comm/frame.h"
#include "comm/status.h"

namespace llamaforge::comm {

class StoreServer {
 public:
  // Throws ERR_PEER if the port is taken.
  StoreServer(const std::string& host, int port, int world_size, std::string token,
              Milliseconds start_timeout, bool one_host);
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;

  // Ends the thread after the messages that it is sending.
  void stop();
  // Ends once every rank has said goodbye or is gone, or after `most`.
  void finish(Milliseconds most);

 private:
  struct Client {
    Socket socket;
    std::string address, in, out;
    size_t sent = 0;
    int rank = -1;               // -1 before its hello
    Clock::time_point deadline;  // for its hello
    bool closing = false;        // close once `out` is sent
    bool left = false;           // said goodbye
    bool dead = false;
  };
  struct Waiter {  // waits for a key
    Client* client;
    uint64_t id;
    std::string key;
    Clock::time_point deadline;
  };
  struct Barrier {
    std::map<int, Waiter> arrived;  // keyed by rank
  };
  struct Check {  // for one sequence number of one group
    uint64_t hash;
    int rank;
    std::string description;
    uint64_t seen = 1;
  };

  void run();
  void accept_all();
  void serve(Client& client);
  void handle(Client& client, const Message& message);
  void greet(Client& client, const Message& message);
  void check(Client& client, Reader& reader);
  // Whether stored data may grow from `before` to `after` bytes; if so, counts the growth.
  bool make_room(size_t before, size_t after);
  void send(Client& client, MessageType type, uint64_t id = 0, std::string body = {});
  void flush(Client& client);
  void refuse(Client& client, const std::string& why, MessageType type = MessageType::refused);
  // Makes room for another connection by dropping the oldest one that has not identified itself.
  // Returns false if there is none.
  bool evict();
  void lose(Client& client, const std::string& why);
  void begin_trouble(Trouble trouble);
  void end_trouble();
  void expire();
  void forget_dead();
  int next_timeout() const;
  std::string missing_ranks() const;
  std::string outside_address() const;
  int waiting_for_hello() const;

  const int world_size_;
  const std::string token_;
  const Clock::time_point start_deadline_;
  const Milliseconds start_timeout_;
  Socket listener_;
  Wakeup wakeup_;
  std::list<Client> clients_;
  std::map<int, Client*> ranks_;  // connected ranks
  std::map<int, std::string> lost_;
  std::set<int> left_;
  bool started_ = false, verdict_given_ = false;
  bool full_ = false;  // a connection came while no descriptor was free

  std::map<std::string, std::string> values_;
  std::map<std::string, uint64_t> counters_;  // two's complement
  size_t stored_bytes_ = 0;                   // total of keys and values
  std::list<Waiter> waiters_;
  std::map<std::string, Barrier> barriers_;
  std::map<std::string, Check> checks_;  // by group and sequence number
  std::vector<std::string> refusals_;    // the last few, for error messages

  std::unique_ptr<Trouble> trouble_;
  Clock::time_point trouble_deadline_;

  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> finish_by_{0};  // Clock ticks; 0: finish() was not called
  std::atomic<bool> ended_{false};
  std::thread thread_;  // last member: starts after everything else is initialised
};

}  // namespace llamaforge::comm

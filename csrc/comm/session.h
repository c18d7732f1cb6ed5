// What ties a rank to its run: the store, the groups, and the watchdog over both. The watchdog is a thread of its own
// that needs nothing of JavaScript: it follows every collective, tells the others of a failure here, and when the run
// has failed says so on stderr, ends what is on its way, and after a moment for the program to end itself ends the
// process.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "comm/group.h"
#include "comm/store_client.h"
#include "comm/store_server.h"

namespace llamaforge::comm {

class Session {
 public:
  static constexpr int kExitCode = 6;
  static constexpr Milliseconds kGrace{2000};  // from the failure to the end of the process

  // Blocks until every rank has come. Throws ERR_PEER; `cancelled` ends the wait.
  Session(const StoreOptions& options, const std::atomic<bool>& cancelled);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  StoreClient& store() { return *client_; }
  const StoreOptions& options() const { return options_; }

  // A group's name is used once: the store keeps by it how the ranks find each other. Throws ERR_ARGUMENT.
  void use_name(const std::string& group);
  void add(std::shared_ptr<Group> group);
  void remove(const Group& group);
  // Called once on the watchdog's thread; at once if the run has failed already.
  void on_failure(std::function<void(const std::string&)> listener);
  // This rank gives up: the others are told.
  void report(const std::string& group, uint64_t sequence, const std::string& text);

  // Says goodbye and ends the watchdog. Blocking: rank 0 waits for the others, for a while.
  void close();
  // Ends the watchdog without goodbye: the others learn that this rank is gone.
  void abandon();

 private:
  void watch();
  void fail(const std::string& verdict);
  // Ends the watchdog and what it began: afterwards no thread of this session calls a device's library. Others may use
  // the session still.
  void quiet();
  static void quiet_all();  // before libraries go, at the end of the process
  std::string status();
  std::vector<std::shared_ptr<Group>> groups();

  const StoreOptions options_;
  std::unique_ptr<StoreServer> server_;  // on rank 0
  std::unique_ptr<StoreClient> client_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> names_;
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<std::function<void(const std::string&)>> listeners_;
  std::string verdict_;   // the run has failed
  std::string reported_;  // what this rank found, while the others are asked
  Clock::time_point reported_at_;
  bool told_ = false, leaving_ = false, ending_ = false;

  std::mutex quieting_;
  std::thread watchdog_;
  std::thread aborter_;  // of a failure: ends what is on its way
};

}  // namespace llamaforge::comm

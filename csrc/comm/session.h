// A session ties a rank to its run: the store, the groups, and the watchdog over both. The watchdog
// is a thread of its own that needs nothing from JavaScript. It follows every collective and
// reports a failure here to the other ranks. When the run has failed, it says so on stderr, aborts
// the running collectives, gives the program a moment to end itself, and then ends the process.
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

  // Reserves a group's name. A name is used once, because the store's keys for the ranks'
  // rendezvous contain it. Throws ERR_ARGUMENT.
  void use_name(const std::string& group);
  void add(std::shared_ptr<Group> group);
  void remove(const Group& group);
  // The listener is called once on the watchdog's thread, or at once if the run has failed already.
  void on_failure(std::function<void(const std::string&)> listener);
  // Reports that this rank gives up to the other ranks.
  void report(const std::string& group, uint64_t sequence, const std::string& text);

  // Says goodbye and ends the watchdog. Blocks: rank 0 waits a while for the others.
  void close();
  // Ends the watchdog without a goodbye, so the others learn that this rank is gone.
  void abandon();

 private:
  void watch();
  void fail(const std::string& verdict);
  // Ends the watchdog and the threads that it started: afterwards no thread of this session calls a
  // device's library. Other threads may still use the session.
  void quiet();
  static void quiet_all();  // at the end of the process, before libraries are destroyed
  // Waits, for a limited time, until the other ranks have been told this rank's failure.
  void spread_report();
  std::string status();
  std::vector<std::shared_ptr<Group>> groups();

  const StoreOptions options_;
  std::unique_ptr<StoreServer> server_;  // exists on rank 0
  std::unique_ptr<StoreClient> client_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> names_;
  std::vector<std::shared_ptr<Group>> groups_;
  std::vector<std::function<void(const std::string&)>> listeners_;
  std::string verdict_;   // set when the run has failed
  std::string reported_;  // failure that this rank reported, while the others are asked
  Clock::time_point reported_at_;
  bool told_ = false, leaving_ = false, ending_ = false;

  std::mutex quieting_;
  std::thread watchdog_;
  std::thread aborter_;  // after a failure: aborts the running collectives
};

}  // namespace llamaforge::comm

#include "comm/session.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace llamaforge::comm {

namespace {

constexpr Milliseconds kTick{20};
constexpr Milliseconds kVerdictTime{2500};  // for the store's answer to a report
constexpr Milliseconds kFinishTime{5000};   // for the other ranks to leave when rank 0 leaves

// Never destroyed, because it is needed until the very end of the process.
struct Living {
  std::mutex mutex;
  std::set<Session*> sessions;
};
Living& living() {
  static Living& all = *new Living;
  return all;
}

// Writes directly to the descriptor, without a lock that a stopped thread may hold.
void say(const std::string& text) {
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t put = write(STDERR_FILENO, text.data() + sent, text.size() - sent);
    if (put <= 0) return;
    sent += static_cast<size_t>(put);
  }
}

}  // namespace

Session::Session(const StoreOptions& options, const std::atomic<bool>& cancelled)
    : options_(options) {
  if (options.rank == 0) {
    server_ = std::make_unique<StoreServer>(options.host, options.port, options.world_size,
                                            options.token, options.timeout, options.one_host);
  }
  StoreClient::Events events;
  events.failed = [this](std::string verdict) {
    {
      std::lock_guard lock(mutex_);
      if (verdict_.empty()) verdict_ = std::move(verdict);
    }
    changed_.notify_all();
  };
  events.status = [this] { return status(); };
  client_ = std::make_unique<StoreClient>(options, std::move(events), cancelled);
  watchdog_ = std::thread([this] { watch(); });
  std::lock_guard lock(living().mutex);
  living().sessions.insert(this);
}

Session::~Session() {
  {
    std::lock_guard lock(living().mutex);
    living().sessions.erase(this);
  }
  abandon();
}

void Session::use_name(const std::string& group) {
  std::lock_guard lock(mutex_);
  if (!names_.insert(group).second)
    throw Error("ERR_ARGUMENT",
                format("[communicator] the name \"{}\" was used before in this run", group));
}

void Session::add(std::shared_ptr<Group> group) {
  // The handler is registered after the group's libraries, because handlers that were registered
  // last run first.
  static std::once_flag registered;
  std::call_once(registered, [] { std::atexit(quiet_all); });
  std::string verdict;
  {
    std::lock_guard lock(mutex_);
    groups_.push_back(group);
    verdict = verdict_;
  }
  if (!verdict.empty()) group->abort(verdict);
}

void Session::remove(const Group& group) {
  std::lock_guard lock(mutex_);
  std::erase_if(groups_, [&](const auto& each) { return each.get() == &group; });
}

std::vector<std::shared_ptr<Group>> Session::groups() {
  std::lock_guard lock(mutex_);
  return groups_;
}

void Session::on_failure(std::function<void(const std::string&)> listener) {
  std::string verdict;
  {
    std::lock_guard lock(mutex_);
    if (!told_) {
      listeners_.push_back(std::move(listener));
      return;
    }
    verdict = verdict_;
  }
  listener(verdict);
}

void Session::report(const std::string& group, uint64_t sequence, const std::string& text) {
  {
    std::lock_guard lock(mutex_);
    if (!reported_.empty() || !verdict_.empty()) return;
    reported_ = text;
    reported_at_ = Clock::now();
  }
  client_->trouble(group, sequence, text);
}

std::string Session::status() {
  std::vector<GroupStatus> all;
  for (const auto& group : groups()) all.push_back(group->status());
  return encode(all);
}

void Session::watch() {
  for (;;) {
    for (const auto& group : groups()) {
      if (const auto finding = group->poll())
        report(group->name(), finding->sequence, finding->text);
    }
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kTick, [this] { return ending_ || !verdict_.empty(); });
    if (ending_) return;
    if (verdict_.empty() && !reported_.empty() && Clock::now() - reported_at_ > kVerdictTime) {
      verdict_ = format(
          "rank 0, which serves the store, does not answer: its process is stopped, or its host or "
          "the network is "
          "down. {}",
          reported_);
    }
    if (verdict_.empty()) continue;
    const std::string verdict = verdict_;
    lock.unlock();
    fail(verdict);
    return;
  }
}

void Session::fail(const std::string& verdict) {
  const auto deadline = Clock::now() + kGrace;
  std::string text =
      format("llamaforge: rank {} of {}: {}\n", options_.rank, options_.world_size, verdict);
  const auto all = groups();
  for (const auto& group : all) {
    if (const std::string history = group->history(); !history.empty()) {
      text += format("llamaforge: rank {}: last collectives of group {}:{}\n", options_.rank,
                     group->name(), history);
    }
  }
  say(text);
  client_->fail(verdict);
  std::vector<std::function<void(const std::string&)>> listeners;
  {
    std::lock_guard lock(mutex_);
    // Groups are aborted on a thread of their own, so that a library that hangs in its abort cannot
    // keep the process alive.
    if (!leaving_) {
      aborter_ = std::thread([all, verdict] {
        for (const auto& group : all) group->abort(verdict);
      });
    }
    told_ = true;
    listeners.swap(listeners_);
  }
  for (const auto& listener : listeners) listener(verdict);
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, deadline, [this] { return ending_; })) _exit(kExitCode);
}

void Session::quiet() {
  std::lock_guard one_at_a_time(quieting_);
  std::thread aborter;
  {
    std::lock_guard lock(mutex_);
    leaving_ = true;
    aborter = std::move(aborter_);
  }
  // The watchdog limits this wait: it ends the process if the library hangs.
  if (aborter.joinable()) aborter.join();
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (watchdog_.joinable()) watchdog_.join();
}

// A program may end itself while threads of its sessions run. Node then destroys nothing, but the
// libraries' static objects are destroyed.
void Session::quiet_all() {
  std::lock_guard lock(living().mutex);
  for (Session* session : living().sessions) {
    session->spread_report();
    session->quiet();
  }
}

// A program that fails reports its failure and ends at once. The other ranks hear the reason only
// if rank 0's store has asked all ranks for their status and has sent the verdict.
void Session::spread_report() {
  {
    std::unique_lock lock(mutex_);
    if (reported_.empty()) return;
    listeners_.clear();  // JavaScript is gone
    changed_.wait_for(lock, kVerdictTime, [this] { return !verdict_.empty(); });
  }
  // The store's thread ends after the round in which it sent the verdict.
  if (server_) server_->stop();
}

void Session::abandon() {
  quiet();
  client_.reset();
  server_.reset();
}

void Session::close() {
  quiet();
  std::mutex mutex;
  std::condition_variable answered;
  bool done = false;
  client_->goodbye([&](std::exception_ptr, std::string) {
    std::lock_guard lock(mutex);
    done = true;
    answered.notify_all();
  });
  {
    std::unique_lock lock(mutex);
    answered.wait_for(lock, kFinishTime, [&] { return done; });
  }
  client_.reset();  // answers pending requests, including the goodbye
  if (server_) server_->finish(kFinishTime);
  server_.reset();
}

}  // namespace llamaforge::comm

#include "comm/store_client.h"

#include <poll.h>

#include <future>
#include <vector>

namespace llamaforge::comm {

namespace {

constexpr Milliseconds kBetweenTries{100};
constexpr Milliseconds kAnswerTime{10'000};  // added to the time that a request itself may take

std::exception_ptr peer_error(const std::string& message) {
  return std::make_exception_ptr(Error("ERR_PEER", message));
}

void throw_if(const std::atomic<bool>& cancelled) {
  if (cancelled) throw Error("ERR_PEER", "the store was closed before it was connected");
}

}  // namespace

StoreClient::StoreClient(const StoreOptions& options, Events events,
                         const std::atomic<bool>& cancelled)
    : events_(std::move(events)), place_(format("{}:{}", options.host, options.port)) {
  join(options, cancelled);
  thread_ = std::thread([this] { run(); });
}

StoreClient::~StoreClient() {
  stopping_ = true;
  wakeup_.wake();
  if (thread_.joinable()) thread_.join();
  fail("the store has been closed");
}

// Rank 0 may start later than the others, so a failed connection is tried again, and so is one for
// which the store has no room. A refusal by the store itself is final.
void StoreClient::join(const StoreOptions& options, const std::atomic<bool>& cancelled) {
  const auto connect_deadline = Clock::now() + options.timeout;
  // At its own deadline the store names the missing ranks; that answer is worth waiting a moment
  // longer.
  const auto deadline = connect_deadline + Milliseconds(2000);
  std::string why;
  for (;;) {
    connect(options, cancelled, connect_deadline, why);
    if (say_hello(options, cancelled, deadline, why)) return;
    socket_.reset();
    in_.clear();
    std::this_thread::sleep_for(kBetweenTries);
  }
}

void StoreClient::connect(const StoreOptions& options, const std::atomic<bool>& cancelled,
                          Clock::time_point deadline, std::string& why) {
  while (!socket_) {
    throw_if(cancelled);
    const auto now = Clock::now();
    if (now >= deadline) {
      throw Error("ERR_PEER", format("[store] rank {} found no rank 0 at {} within {} s ({}): is "
                                     "it running, is MASTER_ADDR the name "
                                     "of its host, and does a firewall let the port through?",
                                     options.rank, place_, options.timeout.count() / 1000.0, why));
    }
    const auto left = std::chrono::ceil<Milliseconds>(deadline - now);
    socket_ = connect_to(options.host, options.port, left, why);
    if (!socket_) std::this_thread::sleep_for(std::min(left, kBetweenTries));
  }
}

bool StoreClient::say_hello(const StoreOptions& options, const std::atomic<bool>& cancelled,
                            Clock::time_point deadline, std::string& why) {
  const std::string hello = encode({MessageType::hello, 0,
                                    Writer()
                                        .text(kGreeting)
                                        .u32(kProtocolVersion)
                                        .u32(static_cast<uint32_t>(options.rank))
                                        .u32(static_cast<uint32_t>(options.world_size))
                                        .text(options.token)
                                        .take()});
  size_t sent = 0;
  const auto lost = [&](const std::string& what) {
    return Error("ERR_PEER",
                 format("[store] rank {}: what answers at {} {}", options.rank, place_, what));
  };
  if (send_some(socket_, hello, sent) != Transfer::more)
    throw lost("closed the connection: it is not rank 0 of a run of LlamaForge");
  for (;;) {
    throw_if(cancelled);
    std::optional<Message> answer;
    try {
      std::string_view rest = in_;
      answer = decode(rest, kLargestFrame);
      in_.erase(0, in_.size() - rest.size());
      if (answer && answer->type == MessageType::welcome) {
        const std::string outside(Reader(answer->body).text());
        local_address_ = comm::local_address(socket_);
        // A rank on rank 0's host may have connected over loopback, because the host's own name may
        // resolve to it.
        if (is_loopback(local_address_) && !outside.empty()) local_address_ = outside;
        return true;
      }
      const bool turned_away = answer && (answer->type == MessageType::refused ||
                                          answer->type == MessageType::try_again);
      if (turned_away) why = Reader(answer->body).text();
    } catch (const Error&) {
      throw lost("is not rank 0 of a run of LlamaForge: another program has that port");
    }
    if (answer && answer->type == MessageType::refused) {
      throw Error("ERR_PEER", format("[store] rank {} was refused by rank 0 at {}: {}",
                                     options.rank, place_, why));
    }
    if (answer && answer->type == MessageType::try_again) return false;
    if (answer) throw lost("is not rank 0 of a run of LlamaForge: another program has that port");
    if (Clock::now() >= deadline)
      throw lost(
          "took the connection but said nothing in time: is it rank 0 of a run of LlamaForge?");
    pollfd waiting = {socket_.fd(), POLLIN, 0};
    poll(&waiting, 1, 100);
    if (waiting.revents && receive_some(socket_, in_) == Transfer::closed && in_.empty()) {
      throw lost("closed the connection: rank 0 ended, or it is another program");
    }
  }
}

void StoreClient::run() {
  size_t sent = 0;
  std::string sending;
  while (!stopping_) {
    {
      std::lock_guard lock(mutex_);
      if (sent == sending.size()) {
        sending = std::move(out_);
        out_.clear();
        sent = 0;
      }
    }
    bool closed = send_some(socket_, sending, sent) == Transfer::closed;
    pollfd watched[2] = {
        {wakeup_.fd(), POLLIN, 0},
        {socket_.fd(), static_cast<short>(POLLIN | (sent < sending.size() ? POLLOUT : 0)), 0}};
    // A message that was posted in the meantime has set the wakeup.
    poll(watched, 2, 200);
    if (watched[0].revents) wakeup_.clear();
    if (watched[1].revents & (POLLIN | POLLHUP | POLLERR))
      closed |= receive_some(socket_, in_) == Transfer::closed;
    try {
      std::string_view rest = in_;
      while (auto message = decode(rest, kLargestFrame)) handle(std::move(*message));
      in_.erase(0, in_.size() - rest.size());
    } catch (const Error&) {
      closed = true;
    }
    expire();
    if (!closed) continue;
    bool expected;
    {
      std::lock_guard lock(mutex_);
      expected = left_ || server_left_;
    }
    const std::string why = expected ? "rank 0, which serves the store, has left the run"
                                     : "rank 0 is gone, which serves the store: its process ended "
                                       "or was killed, or the network broke";
    fail(why);
    if (!expected) events_.failed(why);
    return;
  }
}

void StoreClient::handle(Message message) {
  Reader reader(message.body);
  switch (message.type) {
    case MessageType::status_request: return post(MessageType::status, events_.status());
    case MessageType::verdict: {
      const std::string why(reader.text());
      fail(why);
      return events_.failed(why);
    }
    case MessageType::goodbye: {
      std::lock_guard lock(mutex_);
      server_left_ = true;
      return;
    }
    case MessageType::done:
    case MessageType::value:
    case MessageType::failed: {
      Reply reply;
      // An unreadable answer ends the connection and fails every request, so it is read while its
      // own request is still among them.
      const std::string why(message.type == MessageType::failed ? reader.text() : "");
      {
        std::lock_guard lock(mutex_);
        const auto found = requests_.find(message.id);
        if (found == requests_.end()) return;
        reply = std::move(found->second.reply);
        requests_.erase(found);
      }
      if (message.type == MessageType::failed)
        return reply(peer_error(format("[store] {}", why)), {});
      return reply(nullptr, std::move(message.body));
    }
    default: return;  // message type of a later version
  }
}

void StoreClient::expire() {
  std::vector<Reply> late;
  {
    std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    for (auto at = requests_.begin(); at != requests_.end();) {
      if (now >= at->second.deadline) {
        late.push_back(std::move(at->second.reply));
        at = requests_.erase(at);
      } else {
        ++at;
      }
    }
  }
  for (const Reply& reply : late) {
    reply(peer_error(format(
              "[store] rank 0 at {} does not answer: its process is stopped, or the network is cut",
              place_)),
          {});
  }
}

void StoreClient::request(MessageType type, std::string body, Milliseconds timeout, Reply reply) {
  std::string failure;
  {
    std::lock_guard lock(mutex_);
    failure = left_ ? "the store has been closed" : failure_;
    if (failure.empty()) {
      const uint64_t id = next_id_++;
      requests_[id] = {std::move(reply), Clock::now() + timeout + kAnswerTime};
      out_ += encode({type, id, std::move(body)});
      if (type == MessageType::goodbye) left_ = true;
    }
  }
  if (failure.empty()) {
    wakeup_.wake();
  } else {
    reply(peer_error(failure), {});
  }
}

void StoreClient::post(MessageType type, std::string body) {
  {
    std::lock_guard lock(mutex_);
    if (left_ || !failure_.empty()) return;
    out_ += encode({type, 0, std::move(body)});
  }
  wakeup_.wake();
}

void StoreClient::fail(const std::string& why) {
  std::map<uint64_t, Request> pending;
  {
    std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = why;
    pending.swap(requests_);
  }
  for (const auto& [id, request] : pending) request.reply(peer_error(why), {});
}

void StoreClient::set(const std::string& key, std::string_view value, Reply reply) {
  if (key.size() > kLargestKey)
    throw Error("ERR_ARGUMENT",
                format("[store] a key of {} bytes: at most {}", key.size(), kLargestKey));
  if (value.size() > kLargestValue) {
    throw Error("ERR_ARGUMENT",
                format("[store] a value of {} bytes: at most {}", value.size(), kLargestValue));
  }
  request(MessageType::set, Writer().text(key).text(value).take(), Milliseconds(0),
          std::move(reply));
}

void StoreClient::get(const std::string& key, Milliseconds timeout, Reply reply) {
  if (key.size() > kLargestKey)
    throw Error("ERR_ARGUMENT",
                format("[store] a key of {} bytes: at most {}", key.size(), kLargestKey));
  request(MessageType::get, Writer().text(key).u64(static_cast<uint64_t>(timeout.count())).take(),
          timeout, [reply = std::move(reply)](std::exception_ptr failure, std::string body) {
            std::string value;
            try {
              if (!failure) value = Reader(body).text();
            } catch (const Error&) {
              failure = std::current_exception();
            }
            reply(failure, std::move(value));
          });
}

void StoreClient::add(const std::string& key, int64_t amount, Reply reply) {
  if (key.size() > kLargestKey)
    throw Error("ERR_ARGUMENT",
                format("[store] a key of {} bytes: at most {}", key.size(), kLargestKey));
  request(MessageType::add, Writer().text(key).u64(static_cast<uint64_t>(amount)).take(),
          Milliseconds(0), std::move(reply));
}

void StoreClient::barrier(const std::string& name, Milliseconds timeout, Reply reply) {
  if (name.size() > kLargestKey)
    throw Error("ERR_ARGUMENT",
                format("[store] a name of {} bytes: at most {}", name.size(), kLargestKey));
  request(MessageType::barrier,
          Writer().text(name).u64(static_cast<uint64_t>(timeout.count())).take(), timeout,
          std::move(reply));
}

void StoreClient::goodbye(Reply reply) {
  request(MessageType::goodbye, {}, Milliseconds(0), std::move(reply));
}

void StoreClient::set(const std::string& key, std::string_view value) {
  auto answer = std::make_shared<std::promise<void>>();
  set(key, value, [answer](std::exception_ptr failure, std::string) {
    if (failure) {
      answer->set_exception(failure);
    } else {
      answer->set_value();
    }
  });
  answer->get_future().get();
}

std::string StoreClient::get(const std::string& key, Milliseconds timeout) {
  auto answer = std::make_shared<std::promise<std::string>>();
  get(key, timeout, [answer](std::exception_ptr failure, std::string value) {
    if (failure) {
      answer->set_exception(failure);
    } else {
      answer->set_value(std::move(value));
    }
  });
  return answer->get_future().get();
}

void StoreClient::check(const std::string& group, size_t size, uint64_t sequence, uint64_t hash,
                        const std::string& description) {
  post(MessageType::check, Writer()
                               .text(group)
                               .u32(static_cast<uint32_t>(size))
                               .u64(sequence)
                               .u64(hash)
                               .text(description)
                               .take());
}

void StoreClient::trouble(const std::string& group, uint64_t sequence, const std::string& text) {
  post(MessageType::trouble, Writer().text(group).u64(sequence).text(text).take());
}

}  // namespace llamaforge::comm

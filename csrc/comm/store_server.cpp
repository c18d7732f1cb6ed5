#include "comm/store_server.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>

namespace llamaforge::comm {

namespace {

constexpr Milliseconds kHelloTime{5000};   // for a peer to identify itself
constexpr Milliseconds kStatusTime{1000};  // for the ranks to report their status
constexpr size_t kMostStored = size_t{1} << 30;
constexpr size_t kMostUnsent = size_t{64} << 20;
constexpr size_t kMostChecks = 1 << 16;

// The number of connections that may be open without having identified themselves. All ranks may
// connect at once, and strangers too. Beyond this number the oldest connections are dropped: a rank
// identifies itself at once, so a silent connection is not a rank.
int most_unheard(int world_size) { return std::max(256, 2 * world_size); }

// Compares in a time that does not depend on the position of the difference.
bool same_token(std::string_view a, std::string_view b) {
  unsigned difference = a.size() != b.size();
  for (size_t i = 0; i < a.size() && i < b.size(); ++i)
    difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

int milliseconds_until(Clock::time_point time) {
  const auto left = std::chrono::ceil<Milliseconds>(time - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1000));
}

}  // namespace

StoreServer::StoreServer(const std::string& host, int port, int world_size, std::string token,
                         Milliseconds start_timeout, bool one_host)
    : world_size_(world_size),
      token_(std::move(token)),
      start_deadline_(Clock::now() + start_timeout),
      start_timeout_(start_timeout),
      listener_(listen_on(host, port, one_host)),
      thread_([this] { run(); }) {}

StoreServer::~StoreServer() { stop(); }

void StoreServer::stop() {
  stopping_ = true;
  wakeup_.wake();
  if (thread_.joinable()) thread_.join();
}

void StoreServer::finish(Milliseconds most) {
  finish_by_ = (Clock::now() + most).time_since_epoch().count();
  wakeup_.wake();
  if (thread_.joinable()) thread_.join();
}

void StoreServer::run() {
  std::vector<pollfd> watched;
  std::vector<Client*> owners;
  while (!stopping_) {
    if (finish_by_ != 0 &&
        (ranks_.empty() || Clock::now().time_since_epoch().count() >= finish_by_)) {
      const auto all = ranks_;
      for (const auto& [rank, client] : all) send(*client, MessageType::goodbye);
      return;
    }
    // The listener is not polled while no descriptor is free, because poll() would report the
    // waiting connection again and again.
    watched = {{wakeup_.fd(), POLLIN, 0}, {full_ ? -1 : listener_.fd(), POLLIN, 0}};
    owners.clear();
    for (Client& client : clients_) {
      const bool unsent = client.sent < client.out.size();
      watched.push_back(
          {client.socket.fd(), static_cast<short>(POLLIN | (unsent ? POLLOUT : 0)), 0});
      owners.push_back(&client);
    }
    poll(watched.data(), watched.size(), next_timeout());
    full_ = false;
    if (watched[0].revents) wakeup_.clear();
    if (watched[1].revents) accept_all();
    for (size_t i = 0; i < owners.size(); ++i) {
      if (watched[i + 2].revents & POLLOUT) flush(*owners[i]);
      if (watched[i + 2].revents & (POLLIN | POLLHUP | POLLERR)) serve(*owners[i]);
    }
    expire();
    forget_dead();
  }
}

void StoreServer::forget_dead() {
  waiters_.remove_if([](const Waiter& waiter) { return waiter.client->dead; });
  for (auto& [name, barrier] : barriers_) {
    std::erase_if(barrier.arrived, [](const auto& each) { return each.second.client->dead; });
  }
  clients_.remove_if([](const Client& client) { return client.dead; });
}

int StoreServer::next_timeout() const {
  int least = full_ ? 100 : 1000;
  if (!started_) least = std::min(least, milliseconds_until(start_deadline_));
  if (trouble_) least = std::min(least, milliseconds_until(trouble_deadline_));
  for (const Waiter& waiter : waiters_)
    least = std::min(least, milliseconds_until(waiter.deadline));
  for (const auto& [name, barrier] : barriers_) {
    for (const auto& [rank, waiter] : barrier.arrived)
      least = std::min(least, milliseconds_until(waiter.deadline));
  }
  if (finish_by_ != 0) least = std::min(least, 50);
  return least;
}

int StoreServer::waiting_for_hello() const {
  return static_cast<int>(std::count_if(clients_.begin(), clients_.end(),
                                        [](const Client& c) { return c.rank < 0 && !c.dead; }));
}

void StoreServer::accept_all() {
  for (;;) {
    std::string address;
    Socket socket = accept_from(listener_, address);
    if (!socket) {
      full_ = errno == EMFILE || errno == ENFILE;
      if (!full_ || !evict()) return;
      continue;
    }
    Client& client = clients_.emplace_back();
    client.socket = std::move(socket);
    client.address = address;
    client.deadline = Clock::now() + kHelloTime;
    while (waiting_for_hello() > most_unheard(world_size_) && evict()) {
    }
  }
}

bool StoreServer::evict() {
  for (Client& client : clients_) {
    if (client.rank >= 0 || client.dead) continue;
    if (!client.closing) serve(client);  // its hello may have arrived already
    if (client.rank >= 0) continue;
    refuse(client, "too many connections at once, and it was silent", MessageType::try_again);
    client.dead = true;
    client.socket.reset();
    return true;
  }
  return false;
}

void StoreServer::serve(Client& client) {
  if (client.dead) return;
  const Transfer transfer = receive_some(client.socket, client.in);
  try {
    std::string_view rest = client.in;
    while (!client.dead && !client.closing) {
      const auto message = decode(rest, client.rank < 0 ? kLargestHello : kLargestFrame);
      if (!message) break;
      if (client.rank < 0) {
        greet(client, *message);
      } else {
        handle(client, *message);
      }
    }
    client.in.erase(0, client.in.size() - rest.size());
  } catch (const Error& error) {
    if (client.rank < 0) {
      refuse(client, error.what());
    } else {
      lose(client, format("sent a message that cannot be read: {}", error.what()));
    }
  }
  if (client.closing) client.in.clear();
  if (transfer == Transfer::closed && !client.dead) {
    if (client.rank < 0 && !client.closing) refuse(client, "it went away without saying who it is");
    lose(client, "is gone: its process ended or was killed");
  }
}

void StoreServer::send(Client& client, MessageType type, uint64_t id, std::string body) {
  if (client.dead || client.closing) return;
  if (client.out.size() - client.sent > kMostUnsent) {
    lose(client, "does not read what it is sent");
    return;
  }
  client.out += encode(Message{type, id, std::move(body)});
  flush(client);
}

void StoreServer::flush(Client& client) {
  if (client.dead) return;
  if (send_some(client.socket, client.out, client.sent) == Transfer::closed) {
    lose(client, "is gone: its process ended or was killed");
    return;
  }
  if (client.sent == client.out.size()) {
    client.out.clear();
    client.sent = 0;
    if (client.closing) client.dead = true;
  }
}

// The peer is told the reason, and the reason is kept for the message to ranks that wait for a
// missing one.
void StoreServer::refuse(Client& client, const std::string& why, MessageType type) {
  if (client.dead || client.closing) return;
  refusals_.push_back(format("{}: {}", client.address, why));
  if (refusals_.size() > 5) refusals_.erase(refusals_.begin());
  send(client, type, 0, Writer().text(why).take());
  client.closing = true;
  client.deadline = Clock::now() + kHelloTime;
  flush(client);
}

void StoreServer::lose(Client& client, const std::string& why) {
  if (client.dead) return;
  client.dead = true;
  const int rank = client.rank;
  if (rank < 0 || client.left) return;
  ranks_.erase(rank);
  lost_[rank] = why;
  if (!started_) return;  // it may come back, because its connection broke before the run began
  Trouble trouble;
  trouble.cause = "The run cannot go on without it.";
  begin_trouble(std::move(trouble));
}

void StoreServer::greet(Client& client, const Message& message) {
  if (message.type != MessageType::hello)
    throw Error("ERR_PEER", "it sent something that is not a message of LlamaForge");
  Reader reader(message.body);
  if (reader.text() != kGreeting)
    throw Error("ERR_PEER", "it sent something that is not a message of LlamaForge");
  const uint32_t version = reader.u32();
  const uint32_t rank = reader.u32(), world_size = reader.u32();
  const std::string_view token = reader.text();
  if (version != kProtocolVersion) {
    return refuse(client, format("it speaks version {} of the protocol and rank 0 version {}: the "
                                 "same LlamaForge on all hosts, "
                                 "please",
                                 version, kProtocolVersion));
  }
  if (!same_token(token, token_))
    return refuse(client, "it belongs to another run: its token is not that of rank 0");
  if (world_size != static_cast<uint32_t>(world_size_)) {
    return refuse(client, format("it was started for a world of {} ranks and rank 0 for {}",
                                 world_size, world_size_));
  }
  if (rank >= world_size)
    return refuse(client, format("rank {} is none of a world of {}", rank, world_size));
  if (const auto there = ranks_.find(static_cast<int>(rank)); there != ranks_.end()) {
    return refuse(client, format("rank {} is here already, from {}", rank, there->second->address));
  }
  if (started_) return refuse(client, format("the run has begun, and rank {} has left it", rank));
  client.rank = static_cast<int>(rank);
  ranks_[client.rank] = &client;
  lost_.erase(client.rank);
  if (static_cast<int>(ranks_.size()) == world_size_) {
    started_ = true;
    const std::string body = Writer().text(outside_address()).take();
    const auto all = ranks_;
    for (const auto& [each, member] : all) send(*member, MessageType::welcome, 0, body);
  }
}

void StoreServer::handle(Client& client, const Message& message) {
  Reader reader(message.body);
  const auto fail = [&](const std::string& why) {
    send(client, MessageType::failed, message.id, Writer().text(why).take());
  };
  const auto key_from = [&] {
    const std::string_view key = reader.text();
    if (key.size() > kLargestKey) throw Error("ERR_PEER", "a key is longer than allowed");
    return std::string(key);
  };
  const auto deadline_from = [&] {
    return Clock::now() + Milliseconds(std::min<uint64_t>(reader.u64(), INT32_MAX));
  };
  switch (message.type) {
    case MessageType::set: {
      const std::string key = key_from();
      const std::string_view value = reader.text();
      const auto found = values_.find(key);
      const size_t before = found == values_.end() ? 0 : key.size() + found->second.size();
      if (!make_room(before, key.size() + value.size())) return fail("the store is full");
      values_[key] = value;
      send(client, MessageType::done, message.id);
      const std::string body = Writer().text(value).take();
      std::vector<Waiter> ready;
      for (auto at = waiters_.begin(); at != waiters_.end();) {
        if (at->key != key) {
          ++at;
          continue;
        }
        ready.push_back(*at);
        at = waiters_.erase(at);
      }
      for (const Waiter& waiter : ready) send(*waiter.client, MessageType::value, waiter.id, body);
      return;
    }
    case MessageType::get: {
      const std::string key = key_from();
      const auto deadline = deadline_from();
      if (const auto found = values_.find(key); found != values_.end()) {
        return send(client, MessageType::value, message.id, Writer().text(found->second).take());
      }
      waiters_.push_back({&client, message.id, key, deadline});
      return;
    }
    case MessageType::add: {
      const std::string key = key_from();
      const uint64_t amount = reader.u64();
      if (!counters_.contains(key) && !make_room(0, key.size())) return fail("the store is full");
      // The sum is unsigned, so that it wraps around on overflow.
      uint64_t& counter = counters_[key];
      counter += amount;
      return send(client, MessageType::value, message.id, Writer().u64(counter).take());
    }
    case MessageType::barrier: {
      const std::string name = key_from();
      const auto deadline = deadline_from();
      Barrier& barrier = barriers_[name];
      if (!barrier.arrived.emplace(client.rank, Waiter{&client, message.id, name, deadline})
               .second) {
        return fail(format("rank {} waits at the barrier {} already", client.rank, name));
      }
      if (static_cast<int>(barrier.arrived.size()) < world_size_) return;
      const auto arrived = std::move(barrier.arrived);
      barriers_.erase(name);
      for (const auto& [rank, waiter] : arrived) send(*waiter.client, MessageType::done, waiter.id);
      return;
    }
    case MessageType::goodbye:
      client.left = true;
      left_.insert(client.rank);
      ranks_.erase(client.rank);
      send(client, MessageType::done, message.id);
      client.closing = true;
      return flush(client);
    case MessageType::check: return check(client, reader);
    case MessageType::trouble: {
      Trouble trouble;
      trouble.group = reader.text();
      trouble.sequence = reader.u64();
      trouble.cause = reader.text();
      return begin_trouble(std::move(trouble));
    }
    case MessageType::status:
      if (!trouble_) return;
      trouble_->answers[client.rank] = decode_status(message.body);
      if (trouble_->answers.size() >= ranks_.size()) end_trouble();
      return;
    default:
      throw Error("ERR_PEER", format("a message of type {}", static_cast<int>(message.type)));
  }
}

bool StoreServer::make_room(size_t before, size_t after) {
  if (stored_bytes_ - before + after > kMostStored) return false;
  stored_bytes_ += after - before;
  return true;
}

// Checks that a collective has the same hash on every rank of its group.
void StoreServer::check(Client& client, Reader& reader) {
  const std::string group(reader.text());
  const uint32_t size = reader.u32();
  const uint64_t sequence = reader.u64(), hash = reader.u64();
  const std::string description(reader.text());
  const std::string key = format("{}\n{}", sequence, group);
  const auto [place, is_first] = checks_.try_emplace(key, Check{hash, client.rank, description});
  if (!is_first) {
    if (place->second.hash != hash) {
      Trouble trouble;
      trouble.group = group;
      trouble.sequence = sequence;
      trouble.cause = format(
          "The ranks do not call the same collectives: #{} of group {} is {} on rank {} and {} on "
          "rank {}.",
          sequence, group, place->second.description, place->second.rank, description, client.rank);
      return begin_trouble(std::move(trouble));
    }
    ++place->second.seen;
  }
  if (place->second.seen >= size || checks_.size() > kMostChecks) checks_.erase(place);
}

// Asks every rank for its status. The verdict follows when all have answered, or a little later.
void StoreServer::begin_trouble(Trouble trouble) {
  if (trouble_ || verdict_given_) return;
  trouble_ = std::make_unique<Trouble>(std::move(trouble));
  trouble_deadline_ = Clock::now() + kStatusTime;
  const auto all = ranks_;  // copied, because sending may lose a client
  for (const auto& [rank, client] : all) send(*client, MessageType::status_request);
}

void StoreServer::end_trouble() {
  trouble_->lost = lost_;
  trouble_->left = left_;
  const std::string body = Writer().text(verdict_of(*trouble_, world_size_)).take();
  trouble_.reset();
  verdict_given_ = true;
  const auto all = ranks_;
  for (const auto& [rank, client] : all) send(*client, MessageType::verdict, 0, body);
}

std::string StoreServer::missing_ranks() const {
  std::string text;
  int missing = 0;
  for (int rank = 0; rank < world_size_; ++rank) {
    if (ranks_.contains(rank)) continue;
    if (++missing > 20) continue;
    text += format("{}{}{}", missing > 1 ? ", " : "", rank,
                   lost_.contains(rank) ? " (it came and ended)" : "");
  }
  return missing > 20 ? format("{} and {} more", text, missing - 20) : text;
}

// The address at which a rank of another host has reached this host; empty if all ranks came over
// the loopback interface.
std::string StoreServer::outside_address() const {
  for (const auto& [rank, client] : ranks_) {
    if (const std::string own = local_address(client->socket); !is_loopback(own)) return own;
  }
  return {};
}

void StoreServer::expire() {
  const auto now = Clock::now();
  for (Client& client : clients_) {
    if (client.dead || (client.rank >= 0 && !client.closing) || now < client.deadline) continue;
    if (client.closing) {
      client.dead = true;
    } else {
      refuse(client, format("it did not say who it is within {} s", kHelloTime.count() / 1000));
    }
  }
  if (!started_ && now >= start_deadline_) {
    std::string why =
        format("after {} s {} of {} ranks have come; missing: {}", start_timeout_.count() / 1000.0,
               ranks_.size(), world_size_, missing_ranks());
    for (const std::string& refusal : refusals_) why += format("\n  refused {}", refusal);
    const auto all = ranks_;
    for (const auto& [rank, client] : all) {
      client->left = true;
      ranks_.erase(rank);
      send(*client, MessageType::refused, 0, Writer().text(why).take());
      client->closing = true;
      client->deadline = now + kHelloTime;
      flush(*client);
    }
    started_ = true;  // no rank is let in any more
  }
  if (trouble_ && now >= trouble_deadline_) end_trouble();
  std::vector<Waiter> late;
  for (const Waiter& waiter : waiters_) {
    if (now >= waiter.deadline) late.push_back(waiter);
  }
  waiters_.remove_if([&](const Waiter& waiter) { return now >= waiter.deadline; });
  for (const Waiter& waiter : late) {
    send(*waiter.client, MessageType::failed, waiter.id,
         Writer().text(format("no rank has set the key \"{}\" in time", waiter.key)).take());
  }
  for (auto& [name, barrier] : barriers_) {
    const bool over = std::any_of(barrier.arrived.begin(), barrier.arrived.end(),
                                  [&](const auto& each) { return now >= each.second.deadline; });
    if (!over) continue;
    std::string absent;
    for (int rank = 0; rank < world_size_; ++rank) {
      if (!barrier.arrived.contains(rank))
        absent += format("{}{}", absent.empty() ? "" : ", ", rank);
    }
    const auto arrived = std::move(barrier.arrived);
    barrier.arrived.clear();
    const std::string body =
        Writer()
            .text(format("the barrier \"{}\" was not reached in time by these ranks: {}", name,
                         absent))
            .take();
    for (const auto& [rank, waiter] : arrived)
      send(*waiter.client, MessageType::failed, waiter.id, body);
  }
}

}  // namespace llamaforge::comm

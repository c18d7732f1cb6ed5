// Fuzzing of the data that the store's two sides read from the network: `npm run fuzz -- --only
// store` (libFuzzer, sanitizers). The real server and the real client run over the loopback
// interface, with a peer that sends the input's data.
//
// An input is one byte, even for the server and odd for the client, then records of a byte `from`,
// a byte `type`, a byte `length` and that many bytes of body. from % 3 selects the connection: rank
// 0, rank 1, or one that has not said who it is. With from & 128 the body is sent unchanged;
// otherwise it is framed as a message of this type, with its first byte as the id.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/store_client.h"
#include "comm/store_server.h"

namespace {

using namespace llamaforge;
using namespace llamaforge::comm;

constexpr Milliseconds kPatience{10'000};
constexpr int kWorldSize = 3, kWitness = 2;
constexpr const char* kHost = "127.0.0.1";
constexpr const char* kToken = "token";

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

struct Record {
  int from;
  std::string bytes;
};

std::vector<Record> records_of(std::string_view input) {
  std::vector<Record> records;
  while (input.size() >= 3) {
    const uint8_t from = static_cast<uint8_t>(input[0]), type = static_cast<uint8_t>(input[1]);
    const size_t length = std::min<size_t>(static_cast<uint8_t>(input[2]), input.size() - 3);
    const std::string_view body = input.substr(3, length);
    input.remove_prefix(3 + length);
    std::string bytes(body);
    if (!(from & 128)) {
      const uint64_t id = body.empty() ? 0 : static_cast<uint8_t>(body[0]);
      bytes = encode(Message{static_cast<MessageType>(type), id,
                             std::string(body.substr(body.empty() ? 0 : 1))});
    }
    records.push_back({from % 3, std::move(bytes)});
  }
  return records;
}

std::string hello(int rank) {
  return encode({MessageType::hello, 0,
                 Writer()
                     .text(kGreeting)
                     .u32(kProtocolVersion)
                     .u32(static_cast<uint32_t>(rank))
                     .u32(kWorldSize)
                     .text(kToken)
                     .take()});
}

// A peer that sends anything. It is closed by reset, so that thousands of peers a second leave no
// port waiting.
class Peer {
 public:
  explicit Peer(Socket socket) : socket_(std::move(socket)) {
    const linger at_once = {1, 0};
    setsockopt(socket_.fd(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  }

  void send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size() && send_some(socket_, bytes, sent) == Transfer::would_block)
      wait(POLLOUT);
  }

  // Returns the next message, or none if the other side has closed. The other side's messages can
  // always be read.
  std::optional<Message> next() {
    for (;;) {
      try {
        std::string_view rest = in_;
        auto message = decode(rest, kLargestFrame);
        in_.erase(0, in_.size() - rest.size());
        if (message) return message;
      } catch (const Error&) {
        broken("a frame of ours cannot be read");
      }
      if (!wait(POLLIN)) broken("no answer in time");
      if (receive_some(socket_, in_) == Transfer::closed && in_.empty()) return std::nullopt;
    }
  }

 private:
  bool wait(short events) const {
    pollfd waiting = {socket_.fd(), events, 0};
    int ready = 0;
    do {
      ready = poll(&waiting, 1, static_cast<int>(kPatience.count()));
    } while (ready < 0 && errno == EINTR);  // EINTR comes from libFuzzer's own clock
    return ready > 0;
  }

  Socket socket_;
  std::string in_;
};

int free_port() {
  static int port = 20000 + getpid() % 20000;
  return port = port >= 60000 ? 20000 : port + 1;
}

Peer connect(int port) {
  std::string why;
  for (int attempt = 0; attempt < 5; ++attempt) {
    if (Socket socket = connect_to(kHost, port, kPatience, why)) return Peer(std::move(socket));
  }
  broken("the server takes no connection");
}

std::unique_ptr<StoreServer> serve(int& port) {
  for (;;) {
    port = free_port();
    try {
      return std::make_unique<StoreServer>(kHost, port, kWorldSize, kToken, kPatience, true);
    } catch (const Error&) {
      // Another program has that port.
    }
  }
}

// Checks that a rank that follows the protocol is served whatever the other ranks send.
void attack_server(const std::vector<Record>& records) {
  int port = 0;
  const auto server = serve(port);
  std::vector<Peer> peers;
  for (int rank = 0; rank < kWorldSize; ++rank) {
    peers.push_back(connect(port));
    peers.back().send(hello(rank));
  }
  Peer& witness = peers[kWitness];
  const auto first = witness.next();
  if (!first || first->type != MessageType::welcome) broken("a full world is not welcomed");
  std::optional<Peer> stranger;
  uint64_t count = 0;
  for (const Record& record : records) {
    if (record.from < kWitness) {
      peers[record.from].send(record.bytes);
    } else {
      if (!stranger) stranger.emplace(connect(port));
      stranger->send(record.bytes);
    }
    // The witness gets its answer after the record has been taken in, because the server goes
    // through its connections in order.
    witness.send(encode({MessageType::add, ++count, Writer().text("witness").u64(1).take()}));
    for (;;) {
      const auto answer = witness.next();
      if (!answer) broken("a rank that did nothing wrong was dropped");
      if (answer->type == MessageType::status_request || answer->type == MessageType::verdict)
        continue;
      if (answer->type != MessageType::value || answer->id != count)
        broken("another answer than was asked for");
      Reader(answer->body).u64();
      break;
    }
  }
}

// Checks that every request is answered once, whatever the store says.
void attack_client(const std::vector<Record>& records) {
  Socket listener;
  int port = 0;
  while (!listener) {
    try {
      listener = listen_on(kHost, port = free_port(), true);
    } catch (const Error&) {
    }
  }
  std::promise<void> asked;
  std::thread store([&] {
    std::string address;
    Socket accepted;
    const auto end = Clock::now() + kPatience;
    while (!(accepted = accept_from(listener, address))) {
      if (Clock::now() > end) broken("the client does not come");
      pollfd waiting = {listener.fd(), POLLIN, 0};
      poll(&waiting, 1, 100);
    }
    Peer client(std::move(accepted));
    client.send(encode(Message{MessageType::welcome, 0, Writer().text("").take()}));
    asked.get_future().wait();
    for (const Record& record : records) client.send(record.bytes);
  });
  std::array<std::atomic<int>, 4> answers{};
  {
    const std::atomic<bool> cancelled{false};
    StoreClient client(
        {kHost, port, 1, kWorldSize, kToken, kPatience},
        {[](const std::string&) {}, [] { return encode(std::vector<GroupStatus>()); }}, cancelled);
    const auto counted = [&](size_t which) {
      return [&answers, which](std::exception_ptr, const std::string&) { ++answers[which]; };
    };
    client.set("key", "value", counted(0));
    client.get("key", kPatience, counted(1));
    client.add("counter", 1, counted(2));
    client.barrier("all", kPatience, counted(3));
    asked.set_value();
    store.join();  // the connection is closed: the store answers no further request
    const auto end = Clock::now() + kPatience;
    for (const auto& each : answers) {
      while (each == 0 && Clock::now() < end)
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  for (const auto& each : answers) {
    if (each != 1) broken("a request was not answered once");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto records = records_of({reinterpret_cast<const char*>(data) + 1, size - 1});
  if (data[0] % 2 == 0) {
    attack_server(records);
  } else {
    attack_client(records);
  }
  return 0;
}

#ifndef LF_LIBFUZZER
#include "fuzz/run_files.h"
#endif

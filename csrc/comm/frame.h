// Messages between a rank and the store: their bytes and the sockets that carry them. Received data
// is untrusted: sizes are bounded before memory is taken, and reading past the end throws.
//
// A frame is: u32 length of the rest, u8 type, u64 id, body; little-endian.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/error.h"

namespace llamaforge::comm {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

constexpr uint32_t kProtocolVersion = 2;
constexpr std::string_view kGreeting = "llamaforge store";
constexpr size_t kLargestKey = 1024;
constexpr size_t kLargestValue = size_t{16} << 20;
constexpr size_t kLargestFrame = kLargestValue + 4096;
constexpr size_t kLargestHello = 1024;  // until a peer has shown its token

enum class MessageType : uint8_t {
  // from a rank
  hello = 1,  // greeting, version, rank, world size, token
  set,        // key, value -> done
  get,        // key, timeout -> value
  add,        // key, amount -> value (i64)
  barrier,    // name, timeout -> done
  goodbye,    // -> done
  check,    // group, its size, sequence number, hash, description: must be the same on all ranks of
            // the group
  trouble,  // group (may be empty), sequence number, text: this rank has detected a failure
  status,   // answer to status_request
  // from the store
  welcome = 64,  // all ranks have come: rank 0's host address for the others, or empty if all are
                 // on that host
  refused,       // text
  done,
  value,
  failed,  // text: this one request has failed
  status_request,
  verdict,    // text: the run has failed
  try_again,  // text: no room for this connection now, but maybe for the next
};

struct Message {
  MessageType type = MessageType::done;
  uint64_t id = 0;
  std::string body;
};

class Writer {
 public:
  Writer& u32(uint32_t value) { return raw(&value, sizeof value); }
  Writer& u64(uint64_t value) { return raw(&value, sizeof value); }
  Writer& text(std::string_view value) {
    u32(static_cast<uint32_t>(value.size()));
    return raw(value.data(), value.size());
  }
  std::string take() { return std::move(bytes_); }

 private:
  Writer& raw(const void* data, size_t bytes) {
    bytes_.append(static_cast<const char*>(data), bytes);
    return *this;
  }
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  uint32_t u32() { return number<uint32_t>(); }
  uint64_t u64() { return number<uint64_t>(); }
  std::string_view text() { return take(u32()); }
  bool at_end() const { return rest_.empty(); }

 private:
  std::string_view take(size_t bytes) {
    if (bytes > rest_.size()) throw Error("ERR_PEER", "a message is shorter than it says");
    const std::string_view part = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return part;
  }
  template <class T>
  T number() {
    T value;
    take(sizeof value).copy(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::string_view rest_;
};

std::string encode(const Message& message);

// Removes the first complete frame from `bytes`. Throws ERR_PEER if the bytes cannot be a frame of
// at most `most` bytes.
std::optional<Message> decode(std::string_view& bytes, size_t most);

// A file descriptor that is closed with its owner.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { reset(); }
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept;
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

// Serves on `port`. The socket listens only on the loopback interface if `host` is a loopback
// address or "localhost", or if `one_host` is set and the name resolves to a loopback address.
// Otherwise such a name is not enough, because a host's own name may resolve to loopback on that
// host only (127.0.1.1 in /etc/hosts). Throws ERR_PEER if the port is taken.
Socket listen_on(const std::string& host, int port, bool one_host);
// Tries each address of `host` once. The addresses share `timeout` and get at most a second each.
// On failure returns an empty socket and sets `why`.
Socket connect_to(const std::string& host, int port, Milliseconds timeout, std::string& why);
// Returns the next connection of a listening socket, non-blocking, with its address; empty if there
// is none.
Socket accept_from(const Socket& listener, std::string& address);
// Returns the address of this side of a connection, without port.
std::string local_address(const Socket& socket);
// Whether an address, in the form that local_address returns, is a loopback address. Names are not.
bool is_loopback(const std::string& address);

enum class Transfer { more, would_block, closed };
// Reads the available bytes and appends them, at most `most` bytes per call.
Transfer receive_some(const Socket& socket, std::string& bytes, size_t most = size_t{1} << 20);
// Sends `bytes`, starting at offset `sent`.
Transfer send_some(const Socket& socket, const std::string& bytes, size_t& sent);

// A descriptor that poll() can wait on and other threads can make ready.
class Wakeup {
 public:
  Wakeup();
  int fd() const { return socket_.fd(); }
  void wake() noexcept;
  void clear() noexcept;

 private:
  Socket socket_;
};

}  // namespace llamaforge::comm

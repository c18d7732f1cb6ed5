#include "comm/frame.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace llamaforge::comm {

namespace {

constexpr size_t kHeaderBytes = sizeof(uint32_t);
constexpr size_t kLeastFrame = 1 + sizeof(uint64_t);
constexpr Milliseconds kMostForAddress{1000};

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve(const char* host, int port, int flags, std::string& why) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host, std::to_string(port).c_str(), &hints, &found);
  if (error != 0) {
    why = error == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(error);
    found = nullptr;
  }
  return {found, freeaddrinfo};
}

std::string text_of(const sockaddr* address, socklen_t bytes, bool with_port) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(address, bytes, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "?";
  std::string text = host;
  if (text.starts_with("::ffff:")) text = text.substr(7);
  return with_port ? text + ":" + port : text;
}

// Sends small messages at once, and notices a silent host without traffic.
void prepare(int fd) {
  const auto set = [fd](int level, int name, int value) {
    setsockopt(fd, level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 4);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

}  // namespace

std::string encode(const Message& message) {
  Writer header;
  header.u32(static_cast<uint32_t>(kLeastFrame + message.body.size()));
  std::string bytes = header.take();
  bytes.reserve(bytes.size() + kLeastFrame + message.body.size());
  bytes += static_cast<char>(message.type);
  bytes.append(reinterpret_cast<const char*>(&message.id), sizeof message.id);
  return bytes + message.body;
}

std::optional<Message> decode(std::string_view& bytes, size_t most) {
  if (bytes.size() < kHeaderBytes) return std::nullopt;
  const uint32_t length = Reader(bytes).u32();
  if (length < kLeastFrame || length > most)
    throw Error("ERR_PEER", "it sent something that is not a message of LlamaForge");
  if (bytes.size() < kHeaderBytes + length) return std::nullopt;
  Message message;
  message.type = static_cast<MessageType>(bytes[kHeaderBytes]);
  std::memcpy(&message.id, bytes.data() + kHeaderBytes + 1, sizeof message.id);
  message.body = bytes.substr(kHeaderBytes + kLeastFrame, length - kLeastFrame);
  bytes.remove_prefix(kHeaderBytes + length);
  return message;
}

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    reset();
    std::swap(fd_, other.fd_);
  }
  return *this;
}

void Socket::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

Socket listen_on(const std::string& host, int port, bool one_host) {
  std::string why = "no address";
  bool loopback = host == "localhost" || is_loopback(host);
  if (!loopback && one_host) {
    const Addresses named = resolve(host.c_str(), port, 0, why);
    loopback = named && is_loopback(text_of(named->ai_addr, named->ai_addrlen, false));
  }
  const Addresses addresses = resolve(loopback ? host.c_str() : nullptr, port, AI_PASSIVE, why);
  // An IPv6 socket also takes IPv4 connections, so IPv6 is tried first when serving on every
  // interface.
  for (const int family : {AF_INET6, AF_INET}) {
    for (const addrinfo* at = addresses.get(); at; at = at->ai_next) {
      if (at->ai_family != family) continue;
      Socket socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (!socket) {
        why = std::strerror(errno);
        continue;
      }
      const int on = 1, off = 0;
      setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      if (family == AF_INET6 && !loopback)
        setsockopt(socket.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
      if (bind(socket.fd(), at->ai_addr, at->ai_addrlen) == 0 && listen(socket.fd(), 1024) == 0)
        return socket;
      if (errno == EADDRINUSE) {
        throw Error("ERR_PEER", format("port {} of this host is taken by another program: choose "
                                       "another MASTER_PORT, or end the "
                                       "run that still has it",
                                       port));
      }
      why = std::strerror(errno);
    }
  }
  throw Error("ERR_PEER", format("cannot serve on port {}: {}", port, why));
}

Socket connect_to(const std::string& host, int port, Milliseconds timeout, std::string& why) {
  const auto deadline = Clock::now() + timeout;
  why = "no address";
  const Addresses addresses = resolve(host.c_str(), port, 0, why);
  int untried = 0;
  for (const addrinfo* at = addresses.get(); at; at = at->ai_next) ++untried;
  for (const addrinfo* at = addresses.get(); at; at = at->ai_next, --untried) {
    Socket socket(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) {
      why = std::strerror(errno);
      continue;
    }
    prepare(socket.fd());
    if (connect(socket.fd(), at->ai_addr, at->ai_addrlen) != 0) {
      if (errno != EINPROGRESS) {
        why = std::strerror(errno);
        continue;
      }
      pollfd waiting = {socket.fd(), POLLOUT, 0};
      const auto left = std::chrono::duration_cast<Milliseconds>(deadline - Clock::now());
      const auto share = std::clamp(left / untried, Milliseconds(0), kMostForAddress);
      if (poll(&waiting, 1, static_cast<int>(share.count())) <= 0) {
        why = "no answer";
        continue;
      }
      int error = 0;
      socklen_t bytes = sizeof error;
      getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &bytes);
      if (error != 0) {
        why = std::strerror(error);
        continue;
      }
    }
    // If the port lies in the range of ports that the system hands out, the system may give it to
    // this very socket. The socket is then connected to itself.
    sockaddr_storage own = {}, peer = {};
    socklen_t own_bytes = sizeof own, peer_bytes = sizeof peer;
    getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&own), &own_bytes);
    getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&peer), &peer_bytes);
    if (own_bytes == peer_bytes && std::memcmp(&own, &peer, own_bytes) == 0) {
      why = std::strerror(ECONNREFUSED);
      continue;
    }
    return socket;
  }
  return {};
}

Socket accept_from(const Socket& listener, std::string& address) {
  sockaddr_storage from = {};
  socklen_t bytes = sizeof from;
  Socket socket(accept4(listener.fd(), reinterpret_cast<sockaddr*>(&from), &bytes,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket) {
    prepare(socket.fd());
    address = text_of(reinterpret_cast<sockaddr*>(&from), bytes, true);
  }
  return socket;
}

std::string local_address(const Socket& socket) {
  sockaddr_storage own = {};
  socklen_t bytes = sizeof own;
  if (getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&own), &bytes) != 0) return "127.0.0.1";
  return text_of(reinterpret_cast<sockaddr*>(&own), bytes, false);
}

bool is_loopback(const std::string& address) {
  in_addr four;
  if (inet_pton(AF_INET, address.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
  in6_addr six;
  return inet_pton(AF_INET6, address.c_str(), &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

Transfer receive_some(const Socket& socket, std::string& bytes, size_t most) {
  char block[size_t{64} << 10];
  for (size_t total = 0; total < most;) {
    const ssize_t got = recv(socket.fd(), block, sizeof block, 0);
    if (got > 0) {
      bytes.append(block, static_cast<size_t>(got));
      total += static_cast<size_t>(got);
    } else if (got < 0 && errno == EINTR) {
      continue;
    } else {
      return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? Transfer::would_block
                                                                  : Transfer::closed;
    }
  }
  return Transfer::more;
}

Transfer send_some(const Socket& socket, const std::string& bytes, size_t& sent) {
  while (sent < bytes.size()) {
    const ssize_t put = send(socket.fd(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (put >= 0) {
      sent += static_cast<size_t>(put);
    } else if (errno != EINTR) {
      return errno == EAGAIN || errno == EWOULDBLOCK ? Transfer::would_block : Transfer::closed;
    }
  }
  return Transfer::more;
}

Wakeup::Wakeup() : socket_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!socket_) throw Error("ERR_NATIVE", format("eventfd: {}", std::strerror(errno)));
}

void Wakeup::wake() noexcept {
  const uint64_t one = 1;
  (void)!write(socket_.fd(), &one, sizeof one);
}

void Wakeup::clear() noexcept {
  uint64_t count;
  (void)!read(socket_.fd(), &count, sizeof count);
}

}  // namespace llamaforge::comm

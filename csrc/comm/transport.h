// Bytes between the CPUs of a group. Gloo carries them, from a library of its own that is loaded when it is asked for
// (libllamaforge_gloo.so): machines that train alone need no Gloo.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/frame.h"

namespace llamaforge::comm {

class Transport {
 public:
  struct Piece {
    int peer;  // within the group
    void* data;
    size_t bytes;
  };
  virtual ~Transport() = default;
  // Sends and receives all these pieces side by side; returns when all are there and gone. The peers' calls must match.
  // Throws ERR_PEER.
  virtual void exchange(const std::vector<Piece>& sends, const std::vector<Piece>& receives) = 0;
  // From another thread: ends an exchange that waits, and all later ones, with ERR_PEER.
  virtual void abort() = 0;
  virtual std::string description() const = 0;
};

struct TransportOptions {
  std::string name;             // of the group
  std::vector<uint32_t> ranks;  // global
  int rank = 0, size = 1;       // within the group
  std::string address;          // of this host, as the others can reach it
  Milliseconds start_timeout{0}, timeout{0};
  // The store, by which the ranks find each other. Blocking.
  std::function<void(const std::string& key, std::string_view value)> set;
  std::function<std::string(const std::string& key)> get;
};

extern "C" using TransportEntry = std::unique_ptr<Transport> * (const char* build_id, const TransportOptions& options);
constexpr const char* kTransportEntry = "llamaforge_gloo_transport";

// Connects the ranks of a group. Throws ERR_DEVICE if Gloo is missing, with every place tried; ERR_PEER if they do not
// meet.
std::unique_ptr<Transport> open_transport(const TransportOptions& options);

}  // namespace llamaforge::comm

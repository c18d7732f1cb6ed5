// Transfers bytes between the CPUs of a group. Gloo carries them. It is in a library of its own
// (libllamaforge_gloo.so) that is loaded on demand, because machines that train alone need no Gloo.
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
    int peer;  // rank within the group
    void* data;
    size_t bytes;
  };
  virtual ~Transport() = default;
  // Sends and receives all these pieces at the same time, and returns when all are sent and
  // received. The peers' calls must match. Throws ERR_PEER.
  virtual void exchange(const std::vector<Piece>& sends, const std::vector<Piece>& receives) = 0;
  // Called from another thread. A waiting exchange and all later ones end with ERR_PEER.
  virtual void abort() = 0;
  virtual std::string description() const = 0;
};

struct TransportOptions {
  std::string name;             // of the group
  std::vector<uint32_t> ranks;  // global
  int rank = 0, size = 1;       // within the group
  std::string address;          // of this host, reachable from the others
  Milliseconds start_timeout{0}, timeout{0};
  // The store, through which the ranks find each other. Blocking.
  std::function<void(const std::string& key, std::string_view value)> set;
  std::function<std::string(const std::string& key)> get;
};

extern "C" using TransportEntry =
    std::unique_ptr<Transport> * (const char* build_id, const TransportOptions& options);
constexpr const char* kTransportEntry = "llamaforge_gloo_transport";

// Connects the ranks of a group. Throws ERR_DEVICE with every place tried if Gloo is missing, and
// ERR_PEER if the ranks do not meet.
std::unique_ptr<Transport> open_transport(const TransportOptions& options);

}  // namespace llamaforge::comm

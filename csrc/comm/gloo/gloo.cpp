// Gloo as the transport, over TCP. Only its point-to-point messages are used, because its own
// collectives do not add in the order of the ranks, as those of cpu_collectives.cpp do.
#include <dlfcn.h>
#include <gloo/common/error.h>
#include <gloo/config.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "comm/transport.h"

namespace llamaforge::comm {

namespace {

// Presents the run's store through Gloo's interface.
class Rendezvous final : public gloo::rendezvous::Store {
 public:
  explicit Rendezvous(const TransportOptions& options) : options_(options) {}
  void set(const std::string& key, const std::vector<char>& data) override {
    options_.set(full(key), {data.data(), data.size()});
  }
  std::vector<char> get(const std::string& key) override {
    const std::string value = options_.get(full(key));
    return {value.begin(), value.end()};
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override {
    wait(keys);
  }

 private:
  std::string full(const std::string& key) const {
    return format("gloo/{}/{}", options_.name, key);
  }
  const TransportOptions& options_;
};

class GlooTransport final : public Transport {
 public:
  explicit GlooTransport(const TransportOptions& options)
      : ranks_(options.ranks),
        timeout_(options.timeout),
        sent_(options.ranks.size()),
        received_(options.ranks.size()) {
    gloo::transport::tcp::attr attributes;
    if (const char* interface = std::getenv("GLOO_SOCKET_IFNAME")) {
      attributes.iface = interface;
    } else {
      attributes.hostname = options.address;
    }
    try {
      auto device = gloo::transport::tcp::CreateDevice(attributes);
      const auto context = std::make_shared<gloo::rendezvous::Context>(options.rank, options.size);
      context->setTimeout(options.start_timeout);
      Rendezvous store(options);
      context->connectFullMesh(store, device);
      context_ = context;
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error("ERR_PEER", format("the ranks of group {} could not connect to each other over "
                                     "Gloo from {}: {}\nGLOO_SOCKET_IFNAME "
                                     "names the network interface to use",
                                     options.name, options.address, error.what()));
    }
  }

  void exchange(const std::vector<Piece>& sends, const std::vector<Piece>& receives) override {
    std::vector<Buffer> buffers;
    int peer = -1;
    {
      std::lock_guard lock(mutex_);
      if (aborted_) throw Error("ERR_PEER", "aborted");
      for (const Piece& piece : receives)
        buffers.push_back(context_->createUnboundBuffer(piece.data, piece.bytes));
      for (const Piece& piece : sends)
        buffers.push_back(context_->createUnboundBuffer(piece.data, piece.bytes));
      current_ = &buffers;
    }
    try {
      size_t next = 0;
      for (const Piece& piece : receives) {
        peer = piece.peer;
        buffers[next++]->recv(peer, received_[static_cast<size_t>(peer)]++);
      }
      for (const Piece& piece : sends) {
        peer = piece.peer;
        buffers[next++]->send(peer, sent_[static_cast<size_t>(peer)]++);
      }
      next = 0;
      bool whole = true;
      for (const Piece& piece : receives) {
        peer = piece.peer;
        whole = buffers[next++]->waitRecv(nullptr, timeout_) && whole;
      }
      for (const Piece& piece : sends) {
        peer = piece.peer;
        whole = buffers[next++]->waitSend(nullptr, timeout_) && whole;
      }
      forget();
      if (!whole) throw Error("ERR_PEER", "aborted");
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      forget();
      throw Error("ERR_PEER", format("the connection to rank {} failed: {}",
                                     ranks_[static_cast<size_t>(peer)], error.what()));
    }
  }

  void abort() override {
    std::lock_guard lock(mutex_);
    aborted_ = true;
    if (!current_) return;
    for (const Buffer& buffer : *current_) {
      buffer->abortWaitRecv();
      buffer->abortWaitSend();
    }
  }

  std::string description() const override {
    Dl_info info;
    const bool known =
        dladdr(reinterpret_cast<const void*>(&gloo::transport::tcp::CreateDevice), &info) &&
        info.dli_fname;
    return format("Gloo {}.{}.{}{}{}", GLOO_VERSION_MAJOR, GLOO_VERSION_MINOR, GLOO_VERSION_PATCH,
                  known ? " from " : "", known ? info.dli_fname : "");
  }

 private:
  using Buffer = std::unique_ptr<gloo::transport::UnboundBuffer>;

  void forget() {
    std::lock_guard lock(mutex_);
    current_ = nullptr;
  }

  const std::vector<uint32_t> ranks_;
  const Milliseconds timeout_;
  std::shared_ptr<gloo::Context> context_;
  // Messages so far, per peer. Both sides use this number to identify the next message.
  std::vector<uint64_t> sent_, received_;
  std::mutex mutex_;
  std::vector<Buffer>* current_ = nullptr;
  bool aborted_ = false;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) std::unique_ptr<Transport>*
llamaforge_gloo_transport(const char* build_id, const TransportOptions& options) {
  if (std::strcmp(build_id, LLAMAFORGE_BUILD_ID) != 0) return nullptr;
  return new std::unique_ptr<Transport>(std::make_unique<GlooTransport>(options));
}

}  // namespace llamaforge::comm

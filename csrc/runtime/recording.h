// A recorded stretch of ops, which a stream runs as often as it is asked to: the same list of works
// on the same tensors each time. The recording holds the works, and with them all tensors, so the
// memory of the intermediate results stays as long as the recording lives.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace llamaforge {

class Stream;

class Recording {
 public:
  struct Op {
    const char* name;
    std::function<void(Stream&)> work;
  };
  // A device's own state of a recording, such as a graph. Made and used on the stream's thread.
  struct DeviceState {
    virtual ~DeviceState() = default;
  };

  Recording() = default;
  // The device's state goes first, because its memory belongs to the stream that the works hold.
  ~Recording() { device.reset(); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void add(const char* name, std::function<void(Stream&)> work) {
    ops_.push_back({name, std::move(work)});
  }
  const std::vector<Op>& ops() const { return ops_; }

  // Number of runs without a failure since the last failure.
  size_t runs = 0;
  std::unique_ptr<DeviceState> device;

 private:
  std::vector<Op> ops_;
};

}  // namespace llamaforge

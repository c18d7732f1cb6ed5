// A recording as one launch of a CUDA graph (cuda_recordings.cpp makes it).
#pragma once

#include <map>
#include <vector>

#include "cuda/runtime/cuda_stream.h"

namespace llamaforge::cuda {

// Its scratch memory stays its own, because the graph has the addresses.
struct CudaStream::Graph final : Recording::DeviceState {
  explicit Graph(CudaStream& stream) : stream(stream) {}
  // The GPU may still run the graph. Recordings are released on the launcher, which may wait.
  ~Graph() override {
    if (executable) {
      if (!stream.lost_) cudaStreamSynchronize(stream.compute_);
      cudaGraphExecDestroy(executable);
    }
    for (const Block& block : blocks) stream.give_back(block.memory, block.bytes);
    for (const Content& content : contents) stream.give_back(content.memory, content.bytes.size());
  }
  struct Block {
    void* memory;
    size_t bytes;
    bool free;
  };
  struct Content {
    void* memory;
    std::vector<char> bytes;
  };
  CudaStream& stream;
  cudaGraphExec_t executable = nullptr;
  std::vector<Block> blocks;
  std::vector<Content> contents;
  // Begin and end of the memory that earlier ops write, and of that which the running op writes.
  std::map<const char*, const char*> written, writing;
};

}  // namespace llamaforge::cuda

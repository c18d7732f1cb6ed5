// Recordings of a GPU's stream: ops that are captured once and then launched as one graph.
#include <iterator>
#include <utility>

#include "cuda/runtime/cuda_graph.h"

namespace llamaforge::cuda {

// The first run launches the ops one by one: it allocates the results, chooses the algorithms of
// matrix products and loads kernels, which a capture must not do. The second run captures. With
// LLAMAFORGE_CUDA_SYNC=1 and LLAMAFORGE_CUDA_ALLOCATE_EACH=1, which look at each op by itself,
// every run launches the ops one by one.
void CudaStream::run_recording(const std::shared_ptr<Recording>& recording) {
  const bool apart = synchronous_ || one_by_one_ || recording->runs == 0;
  if (apart) {
    for (const Recording::Op& op : recording->ops()) {
      if (failure_) break;
      launch(op.name, op.work);
      if (++launched_ % kPace == 0) pace();
    }
  } else {
    if (!recording->device) capture(*recording);
    if (!failure_) {
      launch("replay", [&](Stream&) {
        LF_CUDA_CHECK(
            cudaGraphLaunch(static_cast<Graph&>(*recording->device).executable, compute_));
      });
    }
    if (++launched_ % kPace == 0) pace();
  }
  recording->runs = failure_ ? 0 : recording->runs + 1;
}

// Captures in relaxed mode, so that other threads of the process may allocate and wait meanwhile;
// nothing but this thread's launches on the compute stream enters the graph.
void CudaStream::capture(Recording& recording) {
  auto graph = std::make_unique<Graph>(*this);
  graph_ = graph.get();
  launch("replay", [&](Stream&) {
    LF_CUDA_CHECK(cudaStreamBeginCapture(compute_, cudaStreamCaptureModeRelaxed));
  });
  if (failure_) {
    graph_ = nullptr;
    return;
  }
  for (const Recording::Op& op : recording.ops()) {
    launch(op.name, op.work);
    if (failure_) break;
    for (const auto& [begin, end] : graph->writing) graph->written[begin] = end;
    graph->writing.clear();
  }
  if (!failure_) launch("replay", [&](Stream&) { compute(); });
  unlaunched_.reset();
  cudaGraph_t captured = nullptr;
  const cudaError_t error = cudaStreamEndCapture(compute_, &captured);
  graph_ = nullptr;
  if (error != cudaSuccess) cudaGetLastError();
  launch("replay", [&](Stream&) {
    if (failure_) return;
    LF_CUDA_CHECK(error);
    LF_CUDA_CHECK(cudaGraphInstantiate(&graph->executable, captured, 0));
    for (const Graph::Content& content : graph->contents) {
      copy_from_host(content.memory, content.bytes.data(), content.bytes.size());
    }
  });
  if (captured) cudaGraphDestroy(captured);
  // A block that was not released belongs to a tensor.
  std::erase_if(graph->blocks, [](const Graph::Block& block) { return !block.free; });
  if (!failure_) recording.device = std::move(graph);
}

void CudaStream::launch_unlaunched() const { std::exchange(unlaunched_, nullptr)->launch(); }

void* CudaStream::graph_memory(std::vector<char> content) {
  void* memory = take_block(rounded(content.size()));
  graph_->contents.push_back({memory, std::move(content)});
  return memory;
}

void CudaStream::will_write(const void* memory, size_t bytes) {
  if (!graph_) return;
  const auto* begin = static_cast<const char*>(memory);
  graph_->writing[begin] = begin + bytes;
}

bool CudaStream::unwritten(const void* memory) const {
  if (!graph_) return false;
  const auto* place = static_cast<const char*>(memory);
  const auto after = graph_->written.upper_bound(place);
  return after == graph_->written.begin() || std::prev(after)->second <= place;
}

}  // namespace llamaforge::cuda

// Choosing tokens from logits (rows, V): softmax at a temperature, kept to the top_k most likely,
// then to the nucleus (Holtzman et al. 2019, arXiv 1904.09751): the fewest tokens, most likely
// first, that hold top_p of what top_k kept. Ties go to the lower id, so exactly top_k remain. Sums
// are in double, in a fixed order. Row b uses random number offset + b alone: the same numbers as
// on the CPU. Temperature 0 is argmax. Logits of -inf are never chosen; NaN and +inf are errors: a
// broken model must not speak on.
//
// With top_k or top_p a row's tokens are sorted by CUB (stable, so ties keep their order); then a
// block walks a row.
#include <cmath>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/philox.h"
#include "cuda/ops/row_choice.h"
#include "ops/checks/choice.h"

namespace llamaforge::cuda {

namespace {

constexpr int kBlock = 1024;

// Fills the keys and ids of all rows, and reports logits that cannot be sampled from.
template <class T>
__global__ void prepare_kernel(const T* logits, uint32_t* keys, int32_t* ids, int64_t rows,
                               int64_t vocab, FaultSite broken) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * vocab;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float logit = widen(logits[i]);
    if (!(logit < INFINITY))
      report(broken, static_cast<double>(i % vocab), static_cast<double>(i / vocab), logit);
    keys[i] = key_of(logit);
    ids[i] = static_cast<int32_t>(i % vocab);
  }
}

// Walks weight(i) of 0..n-1 and returns the first i at which reached(running sum) holds, or -1.
// `sum` becomes the running sum at that i, or the sum of all weights. The whole block calls it, and
// every thread gets the same result.
template <class Weight, class Reached>
__device__ int64_t walk(int64_t n, const Weight& weight, const Reached& reached, double& sum) {
  __shared__ int first;
  __shared__ double sum_there;
  double before = 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t i = start + threadIdx.x;
    const double own = i < n ? weight(i) : 0;
    double total;
    const double running = before + block_scan<kBlock>(own, total);
    if (threadIdx.x == 0) first = kBlock;
    __syncthreads();
    const bool here = own > 0 && reached(running);
    if (here) atomicMin(&first, static_cast<int>(threadIdx.x));
    __syncthreads();
    if (static_cast<int>(threadIdx.x) == first) sum_there = running;
    __syncthreads();
    const int found = first;
    const double found_sum = sum_there;
    __syncthreads();
    if (found < kBlock) {
      sum = found_sum;
      return start + found;
    }
    before += total;
  }
  sum = before;
  return -1;
}

struct Options {
  double temperature, top_p;
  int64_t top_k;  // at most the vocabulary
};

// A block takes one row. Its keys are sorted, most likely first, if top_k or top_p needs that; else
// they are in the order of ids.
__global__ void __launch_bounds__(kBlock)
    choose_kernel(const uint32_t* keys, const int32_t* ids, int32_t* out, int64_t vocab,
                  Options options, uint64_t seed, int64_t offset, FaultSite impossible) {
  const int64_t row = blockIdx.x;
  keys += row * vocab;
  ids += row * vocab;
  __shared__ uint32_t smallest_key;
  if (threadIdx.x == 0) smallest_key = UINT32_MAX;
  __syncthreads();
  uint32_t own = UINT32_MAX;
  for (int64_t i = threadIdx.x; i < vocab; i += kBlock) own = min(own, keys[i]);
  atomicMin(&smallest_key, own);
  __syncthreads();
  const double largest = logit_of(smallest_key);
  if (!(largest > -INFINITY && largest < INFINITY)) {
    if (threadIdx.x == 0) {
      if (largest == -INFINITY) report(impossible, static_cast<double>(row));
      out[row] = 0;
    }
    return;
  }
  auto weight = [&](int64_t i) {
    return exp((static_cast<double>(logit_of(keys[i])) - largest) / options.temperature);
  };
  const auto never = [](double) { return false; };

  int64_t kept = min(vocab, options.top_k);
  double sum;
  if (options.top_p < 1) {
    double mass;
    walk(kept, weight, never, mass);
    const int64_t last = walk(
        kept, weight, [&](double running) { return running >= options.top_p * mass; }, sum);
    if (last >= 0) kept = last + 1;
  } else {
    walk(kept, weight, never, sum);
  }
  const double target = sample_unit(seed, offset + row) * sum;
  double unused;
  int64_t chosen = walk(
      kept, weight, [&](double running) { return running > target; }, unused);
  if (chosen < 0) {
    // If rounding put the target at the very end, the last token with a nonzero weight is chosen.
    __shared__ int last;
    if (threadIdx.x == 0) last = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < kept; i += kBlock) {
      if (weight(i) > 0) atomicMax(&last, static_cast<int>(i));
    }
    __syncthreads();
    chosen = last;
  }
  if (threadIdx.x == 0) out[row] = ids[chosen];
}

template <class T>
__global__ void greedy_kernel(const T* logits, int32_t* out, int64_t vocab, FaultSite broken,
                              FaultSite impossible) {
  const int64_t row = blockIdx.x;
  const int32_t best = first_maximum<kWholeBlock>(logits + row * vocab, vocab);
  if (threadIdx.x != 0) return;
  const float logit = widen(logits[row * vocab + best]);
  if (!(logit < INFINITY)) report(broken, best, static_cast<double>(row), logit);
  if (logit == -INFINITY) report(impossible, static_cast<double>(row));
  out[row] = best;
}

// Sorts one row at a time with the whole GPU, which is fastest for the few rows of generation.
void sort_rows(CudaStream& cuda, const ChoiceSize& shape, uint32_t* keys, int32_t* ids) {
  const auto n = static_cast<int>(shape.length);
  const Scratch sorted(cuda, static_cast<size_t>(n) * 8);
  auto* sorted_keys = sorted.as<uint32_t>();
  auto* sorted_ids = reinterpret_cast<int32_t*>(sorted_keys + n);
  size_t bytes = 0;
  LF_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, ids, sorted_ids,
                                                n, 0, 32, cuda.compute()));
  const Scratch temporary(cuda, bytes);
  for (int64_t row = 0; row < shape.rows; ++row) {
    uint32_t* own_keys = keys + row * n;
    int32_t* own_ids = ids + row * n;
    LF_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(temporary.as<void>(), bytes, own_keys,
                                                  sorted_keys, own_ids, sorted_ids, n, 0, 32,
                                                  cuda.compute()));
    LF_CUDA_CHECK(cudaMemcpyAsync(own_keys, sorted_keys, static_cast<size_t>(n) * 4,
                                  cudaMemcpyDeviceToDevice, cuda.compute()));
    LF_CUDA_CHECK(cudaMemcpyAsync(own_ids, sorted_ids, static_cast<size_t>(n) * 4,
                                  cudaMemcpyDeviceToDevice, cuda.compute()));
  }
}

}  // namespace

void sample(Stream& stream, In logits, Out ids, double temperature, int64_t top_k, double top_p,
            int64_t seed, int64_t offset) {
  const ChoiceSize shape = check_sample(logits, ids, temperature, top_k, top_p, offset);
  CudaStream& cuda = on_cuda(stream);
  const FaultSite broken =
      cuda.fault_site("ERR_NON_FINITE", "logit {} of row {} is {}: cannot sample from it");
  const FaultSite impossible =
      cuda.fault_site("ERR_NON_FINITE", "all logits of row {} are -inf: no token is possible");
  const auto rows = static_cast<unsigned>(shape.rows);
  if (temperature == 0) {
    with_float("logits", logits, [&]<class T>() {
      greedy_kernel<<<rows, kBlock, 0, cuda.compute()>>>(logits.data<T>(), ids.data<int32_t>(),
                                                         shape.length, broken, impossible);
    });
    return check_launch();
  }
  const auto n = static_cast<size_t>(logits.numel());
  const Scratch scratch(cuda, n * 8);
  auto* keys = scratch.as<uint32_t>();
  auto* order = reinterpret_cast<int32_t*>(keys + n);
  with_float("logits", logits, [&]<class T>() {
    prepare_kernel<<<blocks_for(cuda, logits.numel()), kThreads, 0, cuda.compute()>>>(
        logits.data<T>(), keys, order, shape.rows, shape.length, broken);
  });
  check_launch();
  const int64_t most = top_k > 0 ? std::min(top_k, shape.length) : shape.length;
  if (most < shape.length || top_p < 1) sort_rows(cuda, shape, keys, order);
  choose_kernel<<<rows, kBlock, 0, cuda.compute()>>>(
      keys, order, ids.data<int32_t>(), shape.length, {temperature, top_p, most},
      static_cast<uint64_t>(seed), offset, impossible);
  check_launch();
}

}  // namespace llamaforge::cuda

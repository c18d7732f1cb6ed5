// Embedding: y (N,D) = weight[ids] (N), and backward weight_grad (V,D) f32 += dy, row ids[n] from
// row n.
//
// Backward sorts the tokens by id (a stable radix sort), so that the rows of an id lie together,
// and cuts the sorted list into pieces of 32. A block adds the rows of its piece in order and owns
// each id that lies entirely inside the piece. An id that spans several pieces leaves partial sums,
// which one block then adds in order. So a frequent token is no bottleneck, and sums have one
// order. Floor: dy is read once, and the rows of weight_grad that occur are read and written once.
// An id outside the vocabulary is reported; its row of y is NaN, and its gradient is left out.

#include <cub/device/device_radix_sort.cuh>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/embedding.h"

namespace llamaforge::cuda {

namespace {

constexpr int kPiece = 32;
constexpr int kAhead = 4;  // rows of a piece in flight

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const int32_t* __restrict__ ids, const T* __restrict__ weight, T* __restrict__ y,
                   EmbeddingSize sizes, FaultSite site) {
  const int64_t per_row = sizes.hidden / kCount, warps = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t n = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; n < sizes.tokens;
       n += warps) {
    const int64_t id = ids[n];
    const bool good = id >= 0 && id < sizes.vocab;
    if (!good && threadIdx.x % 32 == 0)
      report(site, static_cast<double>(id), static_cast<double>(n),
             static_cast<double>(sizes.vocab - 1));
    T* to = y + n * sizes.hidden;
    if (!good) {
      for (int64_t i = threadIdx.x % 32; i < sizes.hidden; i += 32)
        to[i] = narrow<T>(__int_as_float(0x7fffffff));
      continue;
    }
    const T* from = weight + id * sizes.hidden;
    int64_t i = threadIdx.x % 32;
    constexpr int kAtOnce = 8;
    for (; i + (kAtOnce - 1) * 32 < per_row; i += kAtOnce * 32) {
      Pack<T, kCount> pack[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        pack[j] = load_pack<T, kCount>(from + (i + j * 32) * kCount);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) store_pack(to + (i + j * 32) * kCount, pack[j]);
    }
    for (; i < per_row; i += 32)
      store_pack(to + i * kCount, load_pack<T, kCount>(from + i * kCount));
  }
}

// keys: the id of each token, or `vocab` (sorted to the end) for a bad one.
__global__ void keys_kernel(const int32_t* ids, uint32_t* keys, int32_t* places,
                            EmbeddingSize sizes, FaultSite site) {
  for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < sizes.tokens;
       n += int64_t{gridDim.x} * blockDim.x) {
    const int64_t id = ids[n];
    const bool good = id >= 0 && id < sizes.vocab;
    if (!good)
      report(site, static_cast<double>(id), static_cast<double>(n),
             static_cast<double>(sizes.vocab - 1));
    keys[n] = static_cast<uint32_t>(good ? id : sizes.vocab);
    places[n] = static_cast<int32_t>(n);
  }
}

// Adds a piece's rows. partial (pieces, 2, hidden) holds two sums per piece: that of the run that
// enters over the piece's start, and that of the run that leaves over its end. A run through the
// whole piece counts as entering.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    pieces_kernel(const uint32_t* __restrict__ keys, const int32_t* __restrict__ places,
                  const T* __restrict__ dy, float* __restrict__ weight_grad,
                  float* __restrict__ partial, EmbeddingSize sizes) {
  __shared__ uint32_t key[kPiece + 2];  // with the neighbours on both sides
  __shared__ int32_t place[kPiece];
  const int64_t first = int64_t{blockIdx.x} * kPiece;
  const int count = static_cast<int>(min(int64_t{kPiece}, sizes.tokens - first));
  const uint32_t nobody = 0xffffffffu;
  for (int i = threadIdx.x; i < kPiece + 2; i += kThreads) {
    const int64_t at = first + i - 1;
    key[i] = at >= 0 && at < sizes.tokens ? keys[at] : nobody;
  }
  for (int i = threadIdx.x; i < count; i += kThreads) place[i] = places[first + i];
  __syncthreads();
  float* coming = partial + 2 * int64_t{blockIdx.x} * sizes.hidden;
  float* leaving = coming + sizes.hidden;
  for (int64_t column = int64_t{threadIdx.x} * kCount; column < sizes.hidden;
       column += int64_t{kThreads} * kCount) {
    float sum[kCount] = {};
    bool from_start = true;  // the run started with the piece
    for (int base = 0; base < count; base += kAhead) {
      Pack<T, kCount> row[kAhead];
      Pack<float, kCount> old[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = base + j;
        if (i < count)
          row[j] = load_pack<T, kCount>(dy + int64_t{place[i]} * sizes.hidden + column);
      }
      // A row of the table that this block owns alone is read early too, where its run ends.
      const auto ends_here = [&](int i) {
        return i < count && key[i + 1] < sizes.vocab && key[i + 2] != key[i + 1];
      };
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (ends_here(base + j)) {
          old[j] = load_pack<float, kCount>(weight_grad +
                                            int64_t{key[base + j + 1]} * sizes.hidden + column);
        }
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = base + j;
        if (i >= count || key[i + 1] >= sizes.vocab) break;
#pragma unroll
        for (int k = 0; k < kCount; ++k) sum[k] += widen(row[j].value[k]);
        const bool ends = ends_here(i);
        if (!ends && i + 1 < count) continue;
        const bool came = from_start && key[0] == key[1];
        Pack<float, kCount> result;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          result.value[k] = ends && !came ? old[j].value[k] + sum[k] : sum[k];
          sum[k] = 0;
        }
        float* to = came   ? coming
                    : ends ? weight_grad + int64_t{key[i + 1]} * sizes.hidden
                           : leaving;
        store_pack(to + column, result);
        from_start = false;
      }
    }
  }
}

// For each run that starts in this piece and leaves it: adds this piece's part, then the parts of
// the following pieces.
template <int kCount>
__global__ void __launch_bounds__(kThreads)
    runs_kernel(const uint32_t* __restrict__ keys, const float* __restrict__ partial,
                float* __restrict__ weight_grad, EmbeddingSize sizes) {
  const int64_t last = (int64_t{blockIdx.x} + 1) * kPiece - 1;  // last token of this piece
  if (last + 1 >= sizes.tokens) return;
  const uint32_t id = keys[last];
  if (id >= sizes.vocab || keys[last + 1] != id) return;
  const int64_t first = int64_t{blockIdx.x} * kPiece;
  if (first > 0 && keys[first] == id && keys[first - 1] == id)
    return;  // the piece where the run starts adds it
  int64_t inside = last + 1,
          beyond = sizes.tokens;  // the run's last place lies in inside .. beyond - 1
  while (beyond - inside > 1) {
    const int64_t middle = (inside + beyond) / 2;
    (keys[middle] == id ? inside : beyond) = middle;
  }
  const int64_t last_piece = inside / kPiece;
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kCount;
  if (column >= sizes.hidden) return;
  const float* from = partial + 2 * int64_t{blockIdx.x} * sizes.hidden + column;
  Pack<float, kCount> sum = load_pack<float, kCount>(from + sizes.hidden);
#pragma unroll 8
  for (int64_t piece = int64_t{blockIdx.x} + 1; piece <= last_piece; ++piece) {
    const auto part = load_pack<float, kCount>(from + 2 * (piece - blockIdx.x) * sizes.hidden);
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum.value[k] += part.value[k];
  }
  float* to = weight_grad + int64_t{id} * sizes.hidden + column;
  const auto old = load_pack<float, kCount>(to);
#pragma unroll
  for (int k = 0; k < kCount; ++k) sum.value[k] += old.value[k];
  store_pack(to, sum);
}

void check_count(const Tensor& ids) {
  LF_CHECK(ids.numel() <= INT32_MAX, "expected fewer than 2^31 ids, got {}", to_string(ids.shape));
}

FaultSite fault_site(CudaStream& cuda) {
  return cuda.fault_site("ERR_TOKEN_ID",
                         "token id {} at position {} is outside the vocabulary 0..{}");
}

template <class T, class Body>
void with_packs(int64_t hidden, std::initializer_list<const void*> pointers, const Body& body) {
  if (hidden % kVector<T> == 0 && aligned16(pointers))
    return body.template operator()<kVector<T>>();
  body.template operator()<1>();
}

size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

void embedding_forward(Stream& stream, In ids, In weight, Out y) {
  CudaStream& cuda = on_cuda(stream);
  const EmbeddingSize sizes = check_embedding_forward(ids, weight, y);
  check_count(ids);
  if (sizes.tokens == 0) return;
  const FaultSite site = fault_site(cuda);
  with_float("weight", weight, [&]<class T>() {
    with_packs<T>(sizes.hidden, {weight.raw(), y.raw()}, [&]<int kCount>() {
      forward_kernel<T, kCount>
          <<<blocks_for(cuda, sizes.tokens, kThreads / 32), kThreads, 0, cuda.compute()>>>(
              ids.data<int32_t>(), weight.data<T>(), y.data<T>(), sizes, site);
    });
  });
  check_launch();
}

void embedding_backward(Stream& stream, In ids, In dy, InOut weight_grad) {
  CudaStream& cuda = on_cuda(stream);
  const EmbeddingSize sizes = check_embedding_backward(ids, dy, weight_grad);
  check_count(ids);
  if (sizes.tokens == 0 || sizes.hidden == 0) return;
  const int tokens = static_cast<int>(sizes.tokens);
  int bits = 1;
  while (sizes.vocab >> bits != 0) ++bits;  // bits that hold 0..vocab
  size_t sort_bytes = 0;
  LF_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      nullptr, sort_bytes, static_cast<uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr),
      static_cast<int32_t*>(nullptr), static_cast<int32_t*>(nullptr), tokens, 0, bits,
      cuda.compute()));
  const size_t list = round_up(static_cast<size_t>(tokens) * 4);
  const int64_t pieces = (sizes.tokens + kPiece - 1) / kPiece;
  const Scratch lists(stream, 4 * list + sort_bytes);
  const Scratch partial(stream, static_cast<size_t>(2 * pieces * sizes.hidden) * sizeof(float));
  char* memory = lists.as<char>();
  auto *keys = reinterpret_cast<uint32_t*>(memory),
       *sorted_keys = reinterpret_cast<uint32_t*>(memory + list);
  auto *places = reinterpret_cast<int32_t*>(memory + 2 * list),
       *sorted = reinterpret_cast<int32_t*>(memory + 3 * list);
  keys_kernel<<<blocks_for(cuda, sizes.tokens), kThreads, 0, cuda.compute()>>>(
      ids.data<int32_t>(), keys, places, sizes, fault_site(cuda));
  check_launch();
  LF_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory + 4 * list, sort_bytes, keys, sorted_keys,
                                                places, sorted, tokens, 0, bits, cuda.compute()));
  with_float("dy", dy, [&]<class T>() {
    with_packs<T>(sizes.hidden, {dy.raw(), weight_grad.raw()}, [&]<int kCount>() {
      pieces_kernel<T, kCount><<<static_cast<unsigned>(pieces), kThreads, 0, cuda.compute()>>>(
          sorted_keys, sorted, dy.data<T>(), weight_grad.data<float>(), partial.as<float>(), sizes);
    });
  });
  check_launch();
  const bool packs = sizes.hidden % 4 == 0 && aligned16({weight_grad.raw()});
  const int64_t per_block = int64_t{kThreads} * (packs ? 4 : 1);
  const dim3 blocks(static_cast<unsigned>(pieces),
                    static_cast<unsigned>((sizes.hidden + per_block - 1) / per_block));
  const auto kernel = packs ? runs_kernel<4> : runs_kernel<1>;
  kernel<<<blocks, kThreads, 0, cuda.compute()>>>(sorted_keys, partial.as<float>(),
                                                  weight_grad.data<float>(), sizes);
  check_launch();
}

}  // namespace llamaforge::cuda

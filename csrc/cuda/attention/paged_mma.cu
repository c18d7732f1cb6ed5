// Attention over a paged cache in bf16 on the tensor cores (paged_mma.cuh has the arithmetic). The
// floor is the time to read the cached keys and values once for each kv head.
//
// paged_step_kernel serves one token of each sequence, as decoding has them. A block has a token, a
// kv head and a unit of kUnit keys, whose parts of kKeys its warps divide; all query heads of the
// group are rows of one product. The warp with the newest key turns it and writes it to its page.
// The block that finishes last merges the units of its token and head. With few tokens the kernel
// waits for memory and for the kernels before it, so the keys and values of earlier tokens are on
// their way to registers before the query exists.
//
// paged_tokens_kernel serves any tokens, as prompts have them: a warp has as many neighbouring
// tokens as fit into the 16 rows of a product, and walks over all keys that they see. Their keys
// and values are in the cache already.
//
// Both merge parts into units and units into results in the order of the keys, so a token has the
// same bits in both.
#include "cuda/attention/paged_step.cuh"
#include "cuda/gemm/chain.h"

namespace llamaforge::cuda {
namespace {

using paged::Call;
using paged::KeysInMemory;
using paged::kKeys;
using paged::kUnit;
using paged::Newest;
using paged::Pages;
using paged::Pair;
using paged::Part;
using paged::Turn;

constexpr int kWarps = 4, kBlock = 32 * kWarps;  // of kernels for any tokens

template <int kSize>
__global__ void __launch_bounds__(kBlock) append_kernel(const Call c) {
  const int kv_heads = c.call.kv_heads, tokens = c.call.batch * c.call.time;
  const int task = (blockIdx.x * kBlock + threadIdx.x) / 32;
  if (task >= tokens * kv_heads) return;
  const int token = task / kv_heads;
  if (task % kv_heads == 0) check(c, token);
  Turn<kSize> turn;
  turn.read(c.angles, c.pages.positions[token]);
  Newest<kSize> newest;
  newest.find(c.pages, token, task % kv_heads, kv_heads);
  newest.read(c, token, task % kv_heads, paged::ReadMemory{c.qkv});
  newest.append(c, turn);
}

// Loads the rows g and g + 8 of 16 query rows, turned. token_of(row) is -1 for a row without a
// query, which becomes 0.
template <int kSize, class TokenOf, class HeadOf>
__device__ __forceinline__ void read_queries(const Call& c, const TokenOf& token_of,
                                             const HeadOf& head_of, uint4 (&query)[2][kSize / 32]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = threadIdx.x % 32 / 4 + 8 * h, token = token_of(row);
#pragma unroll
    for (int b = 0; b < kSize / 32; ++b) query[h][b] = make_uint4(0, 0, 0, 0);
    if (token < 0) continue;
    paged::read_row<kSize>(int64_t{token} * c.call.width() + head_of(row) * kSize,
                           paged::ReadMemory{c.qkv}, query[h]);
    if (!c.angles.table) continue;
    Turn<kSize> turn;
    turn.read(c.angles, c.pages.positions[token]);
    turn.apply(query[h]);
  }
}

struct WholeBlock {
  static __device__ __forceinline__ void sync() { __syncthreads(); }
};

// The results of a token's and kv head's units in memory, which the block that finishes last
// merges.
template <int kSize, int kThreads>
struct UnitsInMemory {
  static constexpr int kLine = paged::kLine<kSize>;
  const Call& c;
  int token, kv_head;

  __device__ __forceinline__ float* line(int64_t head, int nth) const {
    return c.partial + (head * c.most_units + nth) * kLine;
  }
  __device__ __forceinline__ void put(int64_t head, int nth, int d, const Pair& sum) const {
    float* const own = line(head, nth);
    *reinterpret_cast<float2*>(own + 2 + d) = {sum.x, sum.y};
    if (d == 0) own[0] = sum.maximum, own[1] = sum.total;
  }
  // Called by the whole block once its unit, of number `nth`, is there.
  template <class Write>
  __device__ __forceinline__ void merge(int units, int nth, const Write& write) const {
    __shared__ bool is_last;
    if (units == 1 || nth >= units) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* counter = c.counters + token * c.call.kv_heads + kv_head;
      const auto most = static_cast<unsigned>(units - 1);
      is_last = atomicInc(counter, most) == most;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    const int group = c.call.group();
    const int64_t heads = int64_t{token} * c.call.heads + kv_head * group;
    for (int i = 2 * threadIdx.x; i < group * kSize; i += 2 * kThreads) {
      const int row = i / kSize, d = i % kSize;
      Pair sum;
      for (int u = 0; u < units; ++u) {
        const float* own = line(heads + row, u);
        sum.fold(__ldcg(own), __ldcg(own + 1),
                 __ldcg(reinterpret_cast<const float2*>(own + 2 + d)));
      }
      write(heads * kSize + i, sum);
    }
  }
};

// early: no kernel of the same graph writes places, angles or pages before this one.
template <int kSize, int kStepWarps>
__global__ void __launch_bounds__(32 * kStepWarps, 8 / kStepWarps)
    paged_step_kernel(const Call c, const bool early) {
  extern __shared__ float lines[];
  let_next_start();
  if (!early) wait_for_previous();
  const auto wait = [&] {
    if (early) wait_for_previous();
  };
  const int token = blockIdx.z, kv_head = blockIdx.y;
  const auto meanwhile = [&] {
    if (kv_head == 0) check(c, token);
  };
  const auto write = [&](int64_t at, const Pair& sum) {
    c.o[at] = narrow<bfloat16>(sum.x / sum.total);
    c.o[at + 1] = narrow<bfloat16>(sum.y / sum.total);
  };
  const UnitsInMemory<kSize, 32 * kStepWarps> units{c, token, kv_head};
  paged::KeysFromMemory<kSize> keys{c.pages, c.pages.sequence(token), kv_head, c.call.kv_heads};
  paged::step<kSize, kStepWarps, WholeBlock>(
      c, c.pages, token, kv_head, blockIdx.x, lines, wait, meanwhile, keys,
      paged::ReadMemory{c.qkv}, write,
      [&](int64_t head, int d, const Pair& sum) { units.put(head, blockIdx.x, d, sum); });
  units.merge(paged::Units(c.call, token, c.pages.position(token)).count, blockIdx.x, write);
}

template <int kSize>
__global__ void __launch_bounds__(kBlock) paged_tokens_kernel(const Call c) {
  const int kv_head = blockIdx.y, group = c.call.group(), each = 16 / group,
            tokens = c.call.batch * c.call.time;
  const int lane = threadIdx.x % 32, g = lane / 4;
  int token = (blockIdx.x * kWarps + threadIdx.x / 32) * each;
  const int end_token = min(token + each, tokens);
  // Tokens of one sequence are taken together.
  for (int count; token < end_token; token += count) {
    const int sequence = c.pages.sequence(token);
    int from = INT_MAX, end = 0;
    for (count = 0; token + count < end_token && c.pages.sequence(token + count) == sequence;
         ++count) {
      const int last = c.pages.position(token + count);
      from = min(from, c.call.first_key ? max(0, min(c.call.first_key[token + count], last)) : 0);
      end = max(end, last + 1);
    }
    const auto row_of = [&](int row) { return row < count * group ? token + row / group : -1; };
    const auto head_of = [&](int row) { return kv_head * group + row % group; };
    uint4 query[2][kSize / 32];
    read_queries<kSize>(c, row_of, head_of, query);
    int firsts[2], lasts[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int own = row_of(g + 8 * h);
      lasts[h] = own < 0 ? -1 : c.pages.position(own);
      firsts[h] = own >= 0 && c.call.first_key ? max(0, min(c.call.first_key[own], lasts[h])) : 0;
    }
    Part<kSize> all;
    all.clear();
    for (int unit = from / kUnit; unit * kUnit < end; ++unit) {
      Part<kSize> of_unit;
      of_unit.clear();
      for (int begin = unit * kUnit; begin < (unit + 1) * kUnit; begin += kKeys) {
        const int low = max(from, begin), high = min(end, begin + kKeys);
        if (low >= high) continue;
        Part<kSize> part;
        part.clear();
        const KeysInMemory<kSize> memory(c.pages, sequence, kv_head, c.call.kv_heads,
                                         {begin, low, high});
        part.compute(query, memory, c.call.scale, firsts, lasts, 16);
        of_unit.fold(part);
      }
      all.fold(of_unit);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = g + 8 * h, own = row_of(row);
      if (own >= 0)
        all.write_row(c.o + (int64_t{own} * c.call.heads + head_of(row)) * kSize, h, lane);
    }
  }
}

// Whether a kernel may read places, angles and earlier keys while those before it still run.
bool early(const CudaStream& cuda, const Call& c) {
  const auto settled = [&](const void* memory) { return !memory || cuda.unwritten(memory); };
  return cuda.unwritten(c.pages.pages) && settled(c.pages.table) && settled(c.pages.positions) &&
         settled(c.call.first_key) && settled(c.angles.table);
}

template <int kSize, int kStepWarps>
void launch_step(CudaStream& cuda, const Call& c) {
  const size_t bytes = paged::lines_bytes(c.call);
  const auto kernel = paged_step_kernel<kSize, kStepWarps>;
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(bytes)));
  // The products before and after this kernel (few_rows.cu) ask for the same division of the L1
  // cache; kernels with different divisions do not run beside each other.
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                     static_cast<int>(cudaSharedmemCarveoutMaxShared)));
  const dim3 blocks(c.most_units, c.call.kv_heads, c.call.batch * c.call.time);
  launch_early(cuda, kernel, blocks, 32 * kStepWarps, bytes, c, early(cuda, c));
}

template <int kSize>
void launch_apart(CudaStream& cuda, const Call& c) {
  // One warp a part gives a single token the shortest time; with many, two blocks a multiprocessor
  // overlap.
  const bool few = c.call.batch * c.call.time * c.call.kv_heads <= 2 * c.call.processors;
  few ? launch_step<kSize, 8>(cuda, c) : launch_step<kSize, 4>(cuda, c);
}

template <int kSize>
void launch(CudaStream& cuda, const Call& c) {
  const int tokens = c.call.batch * c.call.time, group = c.call.group();
  if (!c.pages.sequences) {
    if (early(cuda, c) && chain_attention(cuda, c, [&cuda, c] { launch_apart<kSize>(cuda, c); }))
      return;
    return launch_apart<kSize>(cuda, c);
  }
  const int tasks = tokens * c.call.kv_heads;
  append_kernel<kSize><<<(tasks + kWarps - 1) / kWarps, kBlock, 0, cuda.compute()>>>(c);
  check_launch();
  const int each = kWarps * (16 / group);
  paged_tokens_kernel<kSize>
      <<<dim3((tokens + each - 1) / each, c.call.kv_heads), kBlock, 0, cuda.compute()>>>(c);
  check_launch();
}

int units_of(const PagedPlaces& places) {
  return (places.table_width * places.page + kUnit - 1) / kUnit;
}

}  // namespace

bool paged_mma_takes(const AttentionCall& call, const PagedPlaces& places, const bfloat16* qkv,
                     const bfloat16* pages) {
  const int64_t tokens = int64_t{call.batch} * call.time;
  return (call.head_size == 64 || call.head_size == 128) && call.group() <= 16 &&
         aligned16({qkv, pages, places.angles}) && tokens * call.kv_heads <= INT32_MAX &&
         (places.sequences || (tokens <= 65535 && tokens * call.kv_heads <= CudaStream::kCounters));
}

size_t paged_mma_scratch(const AttentionCall& call, const PagedPlaces& places) {
  if (places.sequences) return 0;
  return static_cast<size_t>(call.batch) * call.time * call.heads * units_of(places) *
         (call.head_size + 2) * sizeof(float);
}

void attention_paged_mma(CudaStream& cuda, const AttentionCall& call, const bfloat16* qkv,
                         bfloat16* pages, bfloat16* o, float* scratch, const PagedPlaces& places) {
  const Pages of_call = {pages,        places.table,       places.sequences, places.positions,
                         places.count, places.table_width, places.pages,     places.page};
  const Call c = {call,
                  of_call,
                  qkv,
                  o,
                  {places.angles, places.angle_rows},
                  scratch,
                  cuda.counters(),
                  units_of(places),
                  places.wrong_sequence,
                  places.wrong_position,
                  places.wrong_page,
                  places.wrong_angle};
  call.head_size == 64 ? launch<64>(cuda, c) : launch<128>(cuda, c);
}

}  // namespace llamaforge::cuda

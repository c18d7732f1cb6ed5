// Attention over a paged cache in bf16 on the tensor cores (paged_mma.cuh has the arithmetic). The
// floor is the time to read the cached keys and values once for each kv head.
//
// paged_step_kernel serves one token of each sequence, as decoding has them. A block has a token, a
// kv head and a unit of kUnit keys, whose parts of kKeys its warps divide; all query heads of the
// group are rows of one product. The warp with the newest key turns it and writes it to its page. The
// block that finishes last merges the units of its token and head. With few tokens the kernel waits
// for memory and for the kernels before it, so the keys and values of earlier tokens are on their way
// to registers before the query exists.
//
// paged_tokens_kernel serves any tokens, as prompts have them: a warp has as many neighbouring tokens
// as fit into the 16 rows of a product, and walks over all keys that they see. Their keys and values
// are in the cache already.
//
// Both merge parts into units and units into results in the order of the keys, so a token has the
// same bits in both.
#include "cuda/attention/paged_mma.cuh"

#include "cuda/attention/attention_kernels.h"
#include "cuda/runtime/launch.h"

namespace llamaforge::cuda {
namespace {

using paged::kKeys;
using paged::kParts;
using paged::KeysInMemory;
using paged::KeysInRegisters;
using paged::kUnit;
using paged::Pages;
using paged::Part;
using paged::Turn;

constexpr int kWarps = 4, kBlock = 32 * kWarps;  // of kernels for any tokens

struct Call {
  AttentionCall call;
  Pages pages;
  const bfloat16* qkv;
  bfloat16* o;
  paged::Angles angles;
  float* partial;       // of each token, head and unit: maximum, sum, outputs
  unsigned* counters;   // of each token and kv head
  int most_units;
  FaultSite wrong_sequence, wrong_position, wrong_page, wrong_angle;
};

// Reports values outside of the tensors; the kernels use the nearest values inside. Called by a warp.
__device__ void check(const Call& c, int token) {
  const Pages& pages = c.pages;
  const int sequence = pages.sequences ? pages.sequences[token] : token, position = pages.positions[token];
  const int length = pages.table_width * pages.page, lane = threadIdx.x % 32;
  for (int i = lane; i <= pages.position(token) / pages.page; i += 32) {
    const int own = pages.table[pages.sequence(token) * pages.table_width + i];
    if (own < 0 || own >= pages.pages_count) report(c.wrong_page, own, sequence, pages.pages_count - 1);
  }
  if (lane != 0) return;
  if (sequence < 0 || sequence >= pages.sequences_count) {
    report(c.wrong_sequence, sequence, token, pages.sequences_count - 1);
  }
  if (position < 0 || position >= length) report(c.wrong_position, position, token, length - 1);
  if (c.angles.table && (position < 0 || position >= c.angles.rows)) {
    report(c.wrong_angle, position, token, c.angles.rows - 1);
  }
}

// The key of a token's kv head, turned, and its value, as a lane of a warp holds them; they are
// written to their page.
template <int kSize>
struct Newest {
  uint4 key[kSize / 32], value[kSize / 64];

  __device__ __forceinline__ void append(const Call& c, int token, int kv_head, const Turn<kSize>& turn) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, position = c.pages.position(token);
    const bfloat16* from = c.qkv + int64_t{token} * c.call.width() + (c.call.heads + kv_head) * kSize;
    paged::read_row<kSize>(from, key);
#pragma unroll
    for (int wide = 0; wide < kSize / 64; ++wide) {
      value[wide] = *reinterpret_cast<const uint4*>(from + c.call.kv_heads * kSize + wide * 64 + g * 8);
    }
    if (c.angles.table) turn.apply(key);
    bfloat16* to_key = c.pages.row(token, kv_head, position, c.call.kv_heads, kSize);
    bfloat16* to_value = c.pages.row(token, c.call.kv_heads + kv_head, position, c.call.kv_heads, kSize);
    if (g == 0) {
#pragma unroll
      for (int b = 0; b < kSize / 32; ++b) *reinterpret_cast<uint4*>(to_key + b * 32 + t * 8) = key[b];
    }
    if (t == 0) {
#pragma unroll
      for (int wide = 0; wide < kSize / 64; ++wide) {
        *reinterpret_cast<uint4*>(to_value + wide * 64 + g * 8) = value[wide];
      }
    }
  }
};

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
  newest.append(c, token, task % kv_heads, turn);
}

// Loads the rows g and g + 8 of 16 query rows, turned. token_of(row) is -1 for a row without a query,
// which becomes 0.
template <int kSize, class TokenOf, class HeadOf>
__device__ __forceinline__ void read_queries(const Call& c, const TokenOf& token_of, const HeadOf& head_of,
                                             uint4 (&query)[2][kSize / 32]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = threadIdx.x % 32 / 4 + 8 * h, token = token_of(row);
#pragma unroll
    for (int b = 0; b < kSize / 32; ++b) query[h][b] = make_uint4(0, 0, 0, 0);
    if (token < 0) continue;
    paged::read_row<kSize>(c.qkv + int64_t{token} * c.call.width() + head_of(row) * kSize, query[h]);
    if (!c.angles.table) continue;
    Turn<kSize> turn;
    turn.read(c.angles, c.pages.positions[token]);
    turn.apply(query[h]);
  }
}

// Floats of a row's partial result: the maximum, the sum and kSize outputs. The warps of a unit
// exchange such lines in shared memory, and units in global memory.
template <int kSize>
constexpr int kLine = kSize + 2;

// early: no kernel of the same graph writes places, angles or pages before this one.
template <int kSize, int kStepWarps>
__global__ void __launch_bounds__(32 * kStepWarps, 8 / kStepWarps) paged_step_kernel(const Call c, const bool early) {
  extern __shared__ float lines[];  // (kParts, group, kLine)
  __shared__ bool is_last;
  constexpr bool kPreloads = kSize == 64;
  constexpr int kThreadsOfStep = 32 * kStepWarps;
  const int token = blockIdx.z, kv_head = blockIdx.y, group = c.call.group();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
  let_next_start();
  if (!early) wait_for_previous();
  const int sequence = c.pages.sequence(token), last = c.pages.position(token);
  const int first = c.call.first_key ? max(0, min(c.call.first_key[token], last)) : 0;
  const int first_unit = first / kUnit, units = last / kUnit - first_unit + 1, unit = first_unit + blockIdx.x;
  if (static_cast<int>(blockIdx.x) >= units) {
    if (early) wait_for_previous();
    return;
  }
  Turn<kSize> turn;
  turn.read(c.angles, c.pages.positions[token]);
  uint4 query[2][kSize / 32];
  bool queries_read = false;
#pragma unroll
  for (int own = warp; own < kParts; own += kStepWarps) {
    const int begin = unit * kUnit + own * kKeys, low = max(first, begin), high = min(last + 1, begin + kKeys);
    float* const line = lines + own * group * kLine<kSize>;
    Part<kSize> part;
    part.clear();
    if (low < high) {
      const KeysInMemory<kSize> memory(c.pages, sequence, kv_head, c.call.kv_heads, begin, low, high);
      [[maybe_unused]] KeysInRegisters<kPreloads ? kSize : 64> registers;
      if constexpr (kPreloads) registers.read(memory);
      if (!queries_read) {
        if (early) wait_for_previous();
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = g + 8 * h;
#pragma unroll
          for (int b = 0; b < kSize / 32; ++b) query[h][b] = make_uint4(0, 0, 0, 0);
          if (row >= group) continue;
          paged::read_row<kSize>(c.qkv + int64_t{token} * c.call.width() + (kv_head * group + row) * kSize, query[h]);
          if (c.angles.table) turn.apply(query[h]);
        }
        queries_read = true;
      }
      if (high - 1 == last) {
        if (kv_head == 0) check(c, token);
        Newest<kSize> newest;
        newest.append(c, token, kv_head, turn);
        if constexpr (kPreloads) {
          registers.replace(memory, last, newest.key, newest.value);
        } else {
          __syncwarp();
        }
      }
      const int firsts[2] = {first, first}, lasts[2] = {last, last};
      if constexpr (kPreloads) {
        part.compute(query, registers, c.call.scale, begin, low, high, firsts, lasts);
      } else {
        part.compute(query, memory, c.call.scale, begin, low, high, firsts, lasts);
      }
    }
    part.write(line, kLine<kSize>, group, lane);
  }
  if (early && !queries_read) wait_for_previous();
  __syncthreads();

  const bool alone = units == 1;
  const int64_t token_head = int64_t{token} * c.call.heads + kv_head * group;
  float* const of_unit = c.partial + (token_head * c.most_units + blockIdx.x) * kLine<kSize>;
  const int64_t stride = int64_t{c.most_units} * kLine<kSize>;  // between heads
  for (int i = threadIdx.x; i < group * kSize; i += kThreadsOfStep) {
    const int row = i / kSize, d = i % kSize;
    paged::Number sum;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const float* line = lines + (p * group + row) * kLine<kSize>;
      sum.fold(line[0], line[1], line[2 + d]);
    }
    if (alone) {
      c.o[(token_head + row) * kSize + d] = narrow<bfloat16>(sum.value / sum.total);
    } else {
      of_unit[row * stride + 2 + d] = sum.value;
      if (d == 0) of_unit[row * stride] = sum.maximum, of_unit[row * stride + 1] = sum.total;
    }
  }
  if (alone) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* counter = c.counters + token * c.call.kv_heads + kv_head;
    is_last = atomicInc(counter, static_cast<unsigned>(units - 1)) == static_cast<unsigned>(units - 1);
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const float* const all = c.partial + token_head * stride;
  for (int i = threadIdx.x; i < group * kSize; i += kThreadsOfStep) {
    const int row = i / kSize, d = i % kSize;
    paged::Number sum;
    for (int u = 0; u < units; ++u) {
      const float* line = all + row * stride + u * kLine<kSize>;
      sum.fold(__ldcg(line), __ldcg(line + 1), __ldcg(line + 2 + d));
    }
    c.o[(token_head + row) * kSize + d] = narrow<bfloat16>(sum.value / sum.total);
  }
}

template <int kSize>
__global__ void __launch_bounds__(kBlock) paged_tokens_kernel(const Call c) {
  const int kv_head = blockIdx.y, group = c.call.group(), each = 16 / group, tokens = c.call.batch * c.call.time;
  const int lane = threadIdx.x % 32, g = lane / 4;
  int token = (blockIdx.x * kWarps + threadIdx.x / 32) * each;
  const int end_token = min(token + each, tokens);
  // Tokens of one sequence are taken together.
  for (int count; token < end_token; token += count) {
    const int sequence = c.pages.sequence(token);
    int from = INT_MAX, end = 0;
    for (count = 0; token + count < end_token && c.pages.sequence(token + count) == sequence; ++count) {
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
        const KeysInMemory<kSize> memory(c.pages, sequence, kv_head, c.call.kv_heads, begin, low, high);
        part.compute(query, memory, c.call.scale, begin, low, high, firsts, lasts);
        of_unit.fold(part);
      }
      all.fold(of_unit);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = g + 8 * h, own = row_of(row);
      if (own >= 0) all.write_row(c.o + (int64_t{own} * c.call.heads + head_of(row)) * kSize, h, lane);
    }
  }
}

template <int kSize, int kStepWarps>
void launch_step(CudaStream& cuda, const Call& c) {
  const size_t bytes = static_cast<size_t>(kParts) * c.call.group() * kLine<kSize> * sizeof(float);
  const auto kernel = paged_step_kernel<kSize, kStepWarps>;
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  // The products before and after this kernel (few_rows.cu) ask for the same division of the L1 cache;
  // kernels with different divisions do not run beside each other.
  LF_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                     static_cast<int>(cudaSharedmemCarveoutMaxShared)));
  const auto settled = [&](const void* memory) { return !memory || cuda.unwritten(memory); };
  const bool early = cuda.unwritten(c.pages.pages) && settled(c.pages.table) && settled(c.pages.positions) &&
                     settled(c.call.first_key) && settled(c.angles.table);
  const dim3 blocks(c.most_units, c.call.kv_heads, c.call.batch * c.call.time);
  launch_early(cuda, kernel, blocks, 32 * kStepWarps, bytes, c, early);
}

template <int kSize>
void launch(CudaStream& cuda, const Call& c) {
  const int tokens = c.call.batch * c.call.time, group = c.call.group();
  if (!c.pages.sequences) {
    // One warp a part gives a single token the shortest time; with many, two blocks a multiprocessor
    // overlap.
    const bool few = tokens * c.call.kv_heads <= 2 * c.call.processors;
    return few ? launch_step<kSize, 8>(cuda, c) : launch_step<kSize, 4>(cuda, c);
  }
  const int tasks = tokens * c.call.kv_heads;
  append_kernel<kSize><<<(tasks + kWarps - 1) / kWarps, kBlock, 0, c.call.stream>>>(c);
  check_launch();
  const int each = kWarps * (16 / group);
  paged_tokens_kernel<kSize><<<dim3((tokens + each - 1) / each, c.call.kv_heads), kBlock, 0, c.call.stream>>>(c);
  check_launch();
}

int units_of(const PagedPlaces& places) { return (places.table_width * places.page + kUnit - 1) / kUnit; }

}  // namespace

bool paged_mma_takes(const AttentionCall& call, const PagedPlaces& places, const bfloat16* qkv, const bfloat16* pages) {
  const int64_t tokens = int64_t{call.batch} * call.time;
  return (call.head_size == 64 || call.head_size == 128) && call.group() <= 16 && aligned16({qkv, pages}) &&
         tokens * call.kv_heads <= INT32_MAX &&
         (places.sequences || (tokens <= 65535 && tokens * call.kv_heads <= CudaStream::kCounters));
}

size_t paged_mma_scratch(const AttentionCall& call, const PagedPlaces& places) {
  if (places.sequences) return 0;
  return static_cast<size_t>(call.batch) * call.time * call.heads * units_of(places) * (call.head_size + 2) *
         sizeof(float);
}

void attention_paged_mma(CudaStream& cuda, const AttentionCall& call, const bfloat16* qkv, bfloat16* pages, bfloat16* o,
                         float* scratch, const PagedPlaces& places) {
  const Pages of_call = {pages,         places.table,       places.sequences, places.positions,
                         places.count,  places.table_width, places.pages,     places.page};
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

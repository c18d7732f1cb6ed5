// The kernel of a chain (chain.cu says how it works).
#include <array>
#include <mutex>

#include "cuda/gemm/chain_link.cuh"

namespace llamaforge::cuda::chain {

namespace {

using few::FirstWarps;
using few::kBlock;
using few::kRowPad;
using few::kTile;
using few::kWarps;
using few::Sizes;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A block's outputs of a product.
__device__ __forceinline__ int first_output(int outputs, unsigned block) {
  return static_cast<int>(static_cast<unsigned>(outputs) * block / gridDim.x);
}

struct Ring {
  bfloat16* memory;
  int rows;
  hopper::Barrier *full, *empty;  // (kSlots)
};

// Places of stages in the ring, one behind the other. A stage that would cross the end begins at
// the start.
struct Cursor {
  int at = 0;
  // Rows that are left out before a stage of `rows` rows.
  __device__ __forceinline__ int left_out(const Ring& ring, int rows) const {
    return at + rows > ring.rows ? ring.rows - at : 0;
  }
  // The row where a stage of `rows` rows begins.
  __device__ __forceinline__ int take(const Ring& ring, int rows) {
    if (at + rows > ring.rows) at = 0;
    const int place = at;
    at += rows;
    return place;
  }
};

// Copies the token's place and pages. Called by kBlock threads.
__device__ __forceinline__ void copy_places(Places& places, const paged::Pages& pages) {
  const int pages_used = pages.position(0) / pages.page + 1;
  const int32_t* const table = pages.table + int64_t{pages.sequence(0)} * pages.table_width;
  for (int i = threadIdx.x; i < pages_used; i += kBlock) places.table[i] = table[i];
  if (threadIdx.x == 0) places.position = pages.positions[0];
}

// Lets an attention find its token's place and pages there.
__device__ __forceinline__ void use_places(paged::Pages& pages, const Places& places) {
  pages.table = places.table;
  pages.sequences = nullptr;
  pages.sequences_count = 1;
  pages.positions = &places.position;
}

// ---- stages -------------------------------------------------------------------------------------

// The part of a product that belongs to the tile of `count` outputs from `output` on: its low rows
// of w, and its high rows, which are those of up with SwiGLU and the second half of the outputs
// without. A tile at the end may have no high rows.
struct Half {
  int row, rows;
};
__device__ __forceinline__ Half half_of_tile(bool high, bool swiglu, int output, int count,
                                             int outputs) {
  if (swiglu) return {high ? output + outputs : output, count};
  return high ? Half{output + kRowsOfStage, count - kRowsOfStage}
              : Half{output, min(count, kRowsOfStage)};
}

// The parts of an attention's item that have keys, as step() of paged_step.cuh divides them. Each
// is a stage: the keys in the first rows, then the values.
struct Parts {
  int begin, low, high;  // keys: of the first part, and those that are seen
  int first, last;       // parts; none if last < first
};
constexpr int kGroup = 16, kGroupsOfRow = 2;  // keys that are copied at once
__device__ __forceinline__ Parts parts_of(const paged::Call& c, const paged::Pages& pages,
                                          int token, int nth) {
  const int position = pages.position(token);
  const int first = c.call.first_key ? max(0, min(c.call.first_key[token], position)) : 0;
  const int begin = (first / paged::kUnit + nth) * paged::kUnit, low = max(first, begin),
            high = min(position + 1, begin + paged::kUnit);
  return {begin, low, high, (low - begin) / paged::kKeys,
          low < high ? (high - 1 - begin) / paged::kKeys : -1};
}

// The items of an attention: a token, a kv head and a unit of keys each.
struct Items {
  int per_token, units, count;
  __device__ __forceinline__ explicit Items(const paged::Call& c)
      : per_token(c.call.kv_heads * c.most_units),
        units(c.most_units),
        count(c.call.batch * c.call.time * per_token) {}
  struct Item {
    int token, kv_head, nth;
  };
  // A division takes some 20 instructions, for which all blocks wait.
  __device__ __forceinline__ Item at(int number) const {
    const int token = number < per_token ? 0 : number / per_token, own = number - token * per_token;
    const int kv_head = own / units;
    return {token, kv_head, own - kv_head * units};
  }
};

// What a lane copies of a stage, to a place in elements from the stage's first one on.
struct Piece {
  const bfloat16* from;
  int place;
  uint32_t bytes;  // 0: nothing
};

// Calls stage(rows, bytes, piece) for each stage of the block's weights of a product: its rows of
// the ring, its bytes, and the calling lane's piece of it.
template <class Stage>
__device__ __forceinline__ void for_weights(const Product& product, const Stage& stage) {
  const bfloat16* const w = product.w;
  const int k = product.sizes.k, outputs = product.sizes.outputs;
  const bool swiglu = product.swiglu;
  const int tile = swiglu ? kTile<true> : kTile<false>, lane = static_cast<int>(threadIdx.x) % 32;
  const int end = first_output(outputs, blockIdx.x + 1);
  for (int output = first_output(outputs, blockIdx.x); output < end; output += tile) {
    const int count = min(tile, end - output);
    for (int column = 0; column < k; column += kStage) {
      const auto bytes = static_cast<uint32_t>(min(kStage, k - column) * 2);
      for (const bool high : {false, true}) {
        const Half half = half_of_tile(high, swiglu, output, count, outputs);
        if (half.rows <= 0) continue;
        stage(half.rows, half.rows * bytes,
              Piece{w + int64_t{half.row + lane} * k + column, lane * kPitch,
                    lane < half.rows ? bytes : 0});
      }
    }
  }
}

// The same for the keys and values of the block's items of an attention, 16 keys a piece, which lie
// in one page.
template <class Stage>
__device__ __forceinline__ void for_keys(const paged::Call& c, const paged::Pages& pages,
                                         const Stage& stage) {
  constexpr int kGroups = paged::kKeys / kGroup;
  const int lane = static_cast<int>(threadIdx.x) % 32, size = c.call.head_size;
  const auto bytes = static_cast<uint32_t>(kGroup * size * 2);
  const Items items(c);
  for (int number = blockIdx.x; number < items.count; number += gridDim.x) {
    const auto [token, kv_head, nth] = items.at(number);
    const Parts parts = parts_of(c, pages, token, nth);
    for (int part = parts.first; part <= parts.last; ++part) {
      const int begin = parts.begin + part * paged::kKeys;
      const auto exists = [&](int group) {
        const int from = begin + group * kGroup;
        return from < parts.high && from + kGroup > parts.low;
      };
      int groups = 0;
      for (int group = 0; group < kGroups; ++group) groups += exists(group) ? 1 : 0;
      const int group = lane % kGroups, of_values = lane / kGroups;
      Piece piece = {};
      if (of_values <= 1 && exists(group)) {
        piece = {pages.row(token, kv_head + of_values * c.call.kv_heads, begin + group * kGroup,
                           c.call.kv_heads, size),
                 (of_values * kKeyRows / 2 + group / kGroupsOfRow) * kPitch +
                     group % kGroupsOfRow * kGroup * size,
                 bytes};
      }
      stage(kKeyRows, 2 * groups * bytes, piece);
    }
  }
}

// Brings the keys and values of the block's items to the L2 cache.
__device__ __forceinline__ void prefetch_keys(const paged::Call& c, const paged::Pages& pages) {
  const int lane = static_cast<int>(threadIdx.x) % 32, page = pages.page;
  const Items items(c);
  for (int number = blockIdx.x; number < items.count; number += gridDim.x) {
    const auto [token, kv_head, nth] = items.at(number);
    const Parts parts = parts_of(c, pages, token, nth);
    for (int index = parts.low / page * page + lane * page; index < parts.high;
         index += 32 * page) {
      const int from = max(parts.low, index);
      const auto bytes =
          static_cast<uint32_t>((min(parts.high, index + page) - from) * c.call.head_size * 2);
      for (const int head : {kv_head, c.call.kv_heads + kv_head}) {
        const bfloat16* const row = pages.row(token, head, from, c.call.kv_heads, c.call.head_size);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(row), "r"(bytes)
                     : "memory");
      }
    }
  }
}

// Calls weights(product) and keys(call, pages) for what the block's links read and no link makes,
// in the order of links.
template <class Weights, class Keys>
__device__ __forceinline__ void for_links(const Header* header, const Link* links,
                                          const Places& places, hopper::Barrier* have_places,
                                          const Weights& weights, const Keys& keys) {
  const int count = header->count;
  for (int l = 0; l < count; ++l) {
    const Link& link = links[l];
    if (!link.is_attention) {
      weights(link.product);
      continue;
    }
    hopper::barrier_wait(have_places, 0);
    paged::Pages pages = link.attention.call.pages;
    use_places(pages, places);
    keys(link.attention.call, pages);
  }
}

// Copies stages to the ring, as soon as there is room.
class Copier {
 public:
  // `copied`, in shared memory, counts stages.
  __device__ __forceinline__ Copier(const Ring& ring, volatile int* copied)
      : ring_(ring), copied_(copied), free_(ring.rows) {}

  __device__ __forceinline__ void stage(int rows, uint32_t bytes, const Piece& piece) {
    const int lane = static_cast<int>(threadIdx.x) % 32, slot = nth_ % kSlots;
    const int used = rows + cursor_.left_out(ring_, rows);
    while (free_ < used || nth_ - oldest_ == kSlots) {
      hopper::barrier_wait(&ring_.empty[oldest_ % kSlots], oldest_ / kSlots % 2);
      free_ += __shfl_sync(0xffffffffu, taken_, oldest_ % kSlots);
      ++oldest_;
    }
    if (nth_ >= kInFlight) {
      const int before = nth_ - kInFlight;
      hopper::barrier_wait(&ring_.full[before % kSlots], before / kSlots % 2);
    }
    if (lane == slot) taken_ = used;
    bfloat16* const place = ring_.memory + cursor_.take(ring_, rows) * kPitch;
    if (lane == 0) hopper::barrier_expect_bytes(&ring_.full[slot], bytes);
    __syncwarp();
    if (piece.bytes > 0)
      hopper::bulk_load(piece.from, place + piece.place, &ring_.full[slot], piece.bytes, policy_);
    free_ -= used;
    ++nth_;
    if (lane == 0) *copied_ = nth_;
  }

 private:
  const Ring& ring_;
  volatile int* copied_;
  const uint64_t policy_ = hopper::evict_first();
  Cursor cursor_;
  int free_, nth_ = 0, oldest_ = 0;
  int taken_ = 0;  // rows of the stage in the lane's slot, with those left out before it
};

// Brings the stages after those that the copier has copied to the L2 cache, so that the memory does
// not rest while the ring is full.
class Prefetcher {
 public:
  __device__ __forceinline__ explicit Prefetcher(const volatile int* copied) : copied_(copied) {}

  __device__ __forceinline__ void stage(const Piece& piece) {
    int copied;
    while (nth_ - (copied = *copied_) >= kPrefetched) __nanosleep(100);
    if (nth_++ < copied || piece.bytes == 0) return;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(piece.from), "r"(piece.bytes)
                 : "memory");
  }

 private:
  const volatile int* copied_;
  int nth_ = 0;
};

// Reports places outside of the tensors. Called by a warp for which nobody waits.
__device__ void check_places(const Link* links, int count) {
  for (int l = 0; l < count; ++l) {
    if (!links[l].is_attention) continue;
    const paged::Call& c = links[l].attention.call;
    for (int token = 0; token < c.call.batch * c.call.time; ++token) {
      if (token % gridDim.x == blockIdx.x) paged::check(c, token);
    }
  }
}

// ---- mail ---------------------------------------------------------------------------------------

struct Mail {
  uint32_t* words;
  uint32_t tag;  // in the upper half

  __device__ __forceinline__ void write(int64_t at, bfloat16 x) const {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(words + at), "r"(tag | x.bits)
                 : "memory");
  }
  // Returns once one of the calling lanes has its number at `at`. If all lanes asked, their
  // questions would slow down the blocks that send and the copies of weights (docs/LOG.md).
  __device__ __forceinline__ void await(int64_t at) const {
    const unsigned asking = __activemask();
    // Blocks ask for different numbers, so that no place in memory has many askers.
    const int wanted = static_cast<int>(blockIdx.x) % 32,
              asker = asking >> wanted & 1 ? wanted : __ffs(static_cast<int>(asking)) - 1;
    if (static_cast<int>(threadIdx.x) % 32 == asker) {
      uint32_t word;
      do {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
                     : "=r"(word)
                     : "l"(words + at)
                     : "memory");
      } while ((word ^ tag) >> 16 != 0);
    }
    __syncwarp(asking);
  }
  // Eight numbers from `at` on, once they are there.
  __device__ __forceinline__ uint4 take(int64_t at) const {
    await(at);
    uint4 a, b;
    do {
      a = load(words + at);
      b = load(words + at + 4);
    } while (!has_tag(a) || !has_tag(b));
    return packed(a, b);
  }
  // Eight numbers from each place on, with all loads on their way at once.
  template <int kCount>
  __device__ __forceinline__ void take(const int64_t (&at)[kCount],
                                       uint4 (&numbers)[kCount]) const {
    uint4 a[kCount], b[kCount];
    for (;;) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        a[i] = load(words + at[i]);
        b[i] = load(words + at[i] + 4);
      }
      bool all = true;
#pragma unroll
      for (int i = 0; i < kCount; ++i) all = all && has_tag(a[i]) && has_tag(b[i]);
      if (__all_sync(0xffffffffu, all)) break;
      await(at[0]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) numbers[i] = packed(a[i], b[i]);
  }
  // kCount times eight numbers, `stride` apart, with all loads on their way at once; only those
  // before `end` are given to put(at, numbers).
  template <int kCount, class Put>
  __device__ __forceinline__ void take(int64_t at, int stride, int64_t end, const Put& put) const {
    await(at);
    uint4 a[kCount], b[kCount];
    bool all;
    do {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int64_t from = at + j * stride < end ? at + j * stride : at;
        a[j] = load(words + from);
        b[j] = load(words + from + 4);
      }
      all = true;
#pragma unroll
      for (int j = 0; j < kCount; ++j) all = all && has_tag(a[j]) && has_tag(b[j]);
    } while (!all);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (at + j * stride < end) put(at + j * stride, packed(a[j], b[j]));
    }
  }

 private:
  static __device__ __forceinline__ uint4 load(const uint32_t* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
  }
  __device__ __forceinline__ bool has_tag(const uint4& v) const {
    return ((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) >> 16 == 0;
  }
  static __device__ __forceinline__ uint4 packed(const uint4& a, const uint4& b) {
    return {__byte_perm(a.x, a.y, 0x5410), __byte_perm(a.z, a.w, 0x5410),
            __byte_perm(b.x, b.y, 0x5410), __byte_perm(b.z, b.w, 0x5410)};
  }
};

// The mail of link number l of a chain.
__device__ __forceinline__ Mail mail_of(uint32_t* words, int box_words, unsigned links_run, int l) {
  return {words + int64_t{l % kMailboxes} * box_words, (links_run + static_cast<unsigned>(l) + 1)
                                                           << 16};
}

// ---- inputs -------------------------------------------------------------------------------------

// Fills `rows` with what the product takes. `before` is the mail of the link before.
__device__ __forceinline__ void read_rows(bfloat16* rows, const bfloat16* norm, bfloat16* kept,
                                          const Product& product, const Mail& before) {
  const Sizes sizes = product.sizes;
  const auto from = [&](From source, const bfloat16* memory, int64_t at) {
    return source == From::kMail   ? before.take(at)
           : source == From::kKept ? *reinterpret_cast<const uint4*>(kept + at)
                                   : few::load_latest(memory + at);
  };
  if (product.norm_weight) {
    few::norm_rows<FirstWarps>(rows, norm, sizes, [&](int row, int i) {
      const int64_t at = int64_t{row} * sizes.k + i;
      uint4 words = from(product.x_from, product.x, at);
      if (!product.skip) return words;
      words = few::add_words(words, from(product.skip_from, product.skip, at));
      *reinterpret_cast<uint4*>(kept + at) = words;
      if (blockIdx.x == 0) *reinterpret_cast<uint4*>(product.r + at) = words;
      return words;
    });
    return;
  }
  if (product.x_from == From::kMemory) return few::copy_rows(rows, product.x, sizes);
  constexpr int kAtOnce = 3;
  const int pitch = sizes.k + kRowPad;
  if (sizes.k <= kBlock * 8) {
    for (int row = 0; row < sizes.rows; ++row) {
      const int at = static_cast<int>(threadIdx.x) * 8;
      if (at < sizes.k) {
        *reinterpret_cast<uint4*>(rows + row * pitch + at) =
            before.take(int64_t{row} * sizes.k + at);
      }
    }
    return;
  }
  for (int row = 0; row < sizes.rows; ++row) {
    const int64_t begin = int64_t{row} * sizes.k, end = begin + sizes.k;
    for (int64_t at = begin + threadIdx.x * 8; at < end; at += kAtOnce * kBlock * 8) {
      before.take<kAtOnce>(at, kBlock * 8, end, [&](int64_t place, const uint4& words) {
        *reinterpret_cast<uint4*>(rows + row * pitch + (place - begin)) = words;
      });
    }
  }
}

// ---- products -----------------------------------------------------------------------------------

constexpr int kSteps = kStage / 32 / kWarps;  // of 32 columns that a warp takes of a stage

// A warp's first column in a step of a stage, and its lane's first column from there on.
__device__ __forceinline__ int columns_of_step(int step) {
  return step / 2 * few::kChunk + static_cast<int>(threadIdx.x) / 32 * 64 + step % 2 * 32;
}
__device__ __forceinline__ int column_of_lane() { return static_cast<int>(threadIdx.x) % 4 * 8; }

// A lane's numbers of a stage: of its row of w, and of x. A stage at the end of a row may have
// fewer columns than others, and the numbers beyond them are 0.
struct Weights {
  uint4 w[kSteps];
  template <bool kWhole>
  __device__ __forceinline__ void read(const bfloat16* from, int columns) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int at = columns_of_step(i);
      w[i] = kWhole || at < columns ? *reinterpret_cast<const uint4*>(from + at + column_of_lane())
                                    : make_uint4(0, 0, 0, 0);
    }
  }
};
struct Inputs {
  uint2 x[kSteps];
  template <bool kWhole>
  __device__ __forceinline__ void read(const bfloat16* from, int columns) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int at = columns_of_step(i);
      x[i] = kWhole || at < columns ? few::words_of_one(from + at + column_of_lane())
                                    : make_uint2(0, 0);
    }
  }
};

// The stages, one after the other, as the warps that compute find them in the ring.
struct Stages {
  const Ring& ring;
  Cursor cursor = {};
  int read = 0, released = 0;

  // Waits for the next stage, of `rows` rows, and starts to read the lane's numbers.
  template <bool kWhole>
  __device__ __forceinline__ void take(Weights& weights, int rows, int columns) {
    const int place = cursor.take(ring, rows);
    const int own = min(static_cast<int>(threadIdx.x) % 32 / 4, rows - 1);
    hopper::barrier_wait(&ring.full[read % kSlots], read / kSlots % 2);
    ++read;
    weights.read<kWhole>(ring.memory + (place + own) * kPitch, columns);
  }
  // Gives the place of the oldest stage back, whose numbers the warp has used.
  __device__ __forceinline__ void release() {
    hopper::release_stage(&ring.empty[released % kSlots]);
    ++released;
  }
  // Adds the products of the oldest stage that was taken, and gives its place back.
  __device__ __forceinline__ void multiply(float (&sum)[4], const Weights& weights,
                                           const Inputs& inputs) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) few::multiply_one(sum, weights.w[i], inputs.x[i]);
    release();
  }
};

// The warps' sums of two tiles in turn: the first 8 of a warp are those of its low rows.
using TileSums = float[2][kWarps][kTile<false>];

// Adds the warps' sums of a tile, clears them, and gives each result to write(output, result), all
// from the first warp. All threads call it.
template <bool kSwiglu, class Write>
__device__ __forceinline__ void finish_tile(float (&sum)[2][4],
                                            float (&of_warp)[kWarps][kTile<false>], int output,
                                            int count, const Write& write) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (lane % 4 == 0) {
    of_warp[warp][lane / 4] = few::result_of_one(sum[0]);
    of_warp[warp][lane / 4 + kRowsOfStage] = few::result_of_one(sum[1]);
  }
#pragma unroll
  for (float(&of_rows)[4] : sum) of_rows[0] = of_rows[1] = of_rows[2] = of_rows[3] = 0;
  FirstWarps::sync();
  if (warp != 0 || lane >= count) return;
  const auto total = [&](int at) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += of_warp[w][at];
    return all;
  };
  float value = total(lane);
  if constexpr (kSwiglu)
    value = few::silu(few::rounded(value)) * few::rounded(total(lane + kRowsOfStage));
  write(output + lane, narrow<bfloat16>(value));
}

// The outputs begin..end-1 of a product of `k` columns whose x is in shared memory. The reads of a
// stage are on their way while the stage before is multiplied.
template <bool kSwiglu, class Write>
__device__ __forceinline__ void multiply(int k, int begin, int end, const bfloat16* x,
                                         TileSums& sums, Stages& stages, const Write& write) {
  float sum[2][4] = {};
  int buffer = 0;
  const auto count_of = [&](int output) { return min(kTile<kSwiglu>, end - output); };
  const auto low_of = [](int count) { return half_of_tile(false, kSwiglu, 0, count, 0).rows; };
  const auto high_of = [](int count) { return half_of_tile(true, kSwiglu, 0, count, 0).rows; };
  const auto finish = [&](int output, int count) {
    finish_tile<kSwiglu>(sum, sums[buffer], output, count, write);
    buffer ^= 1;
  };
  Weights low, high;
  Inputs inputs;
  // A lane keeps its numbers of x for all tiles.
  if (k == kStage) {
    inputs.read<true>(x, kStage);
    stages.take<true>(low, low_of(count_of(begin)), kStage);
    for (int output = begin; output < end; output += kTile<kSwiglu>) {
      const int count = count_of(output), next = output + kTile<kSwiglu>;
      // Only the last tile may have no high rows.
      if (high_of(count) > 0) {
        stages.take<true>(high, high_of(count), kStage);
        stages.multiply(sum[0], low, inputs);
        if (next < end) stages.take<true>(low, low_of(count_of(next)), kStage);
        stages.multiply(sum[1], high, inputs);
      } else {
        stages.multiply(sum[0], low, inputs);
      }
      finish(output, count);
    }
    return;
  }
  for (int output = begin; output < end; output += kTile<kSwiglu>) {
    const int count = count_of(output);
    stages.take<false>(low, low_of(count), k);
    for (int column = 0; column < k; column += kStage) {
      const int columns = k - column, next = columns - kStage;
      inputs.read<false>(x + column, columns);
      if (high_of(count) > 0) {
        stages.take<false>(high, high_of(count), columns);
        stages.multiply(sum[0], low, inputs);
        if (next > 0) stages.take<false>(low, low_of(count), next);
        stages.multiply(sum[1], high, inputs);
      } else {
        stages.multiply(sum[0], low, inputs);
        if (next > 0) stages.take<false>(low, low_of(count), next);
      }
    }
    finish(output, count);
  }
}

// ---- attention ----------------------------------------------------------------------------------

// An item's earlier keys and values in the ring; each warp takes the part of its number (kParts).
class KeysFromRing {
 public:
  static_assert(kWarps == paged::kParts);
  __device__ __forceinline__ KeysFromRing(Stages& stages, const Parts& parts) : stages_(stages) {
    for (int part = parts.first; part <= parts.last; ++part, ++stages.read) {
      const int place = stages.cursor.take(stages.ring, kKeyRows);
      if (part == static_cast<int>(threadIdx.x) / 32) place_ = place, own_ = stages.read;
    }
  }
  __device__ __forceinline__ auto read(const paged::KeyRange& range) const {
    hopper::barrier_wait(&stages_.ring.full[own_ % kSlots], own_ / kSlots % 2);
    paged::KeysInShared<kSizeInRing> keys;
    keys.read(stages_.ring.memory + place_ * kPitch, kPitch, kGroupsOfRow, range);
    return keys;
  }
  // Gives all parts back; a warp may have written the newest key to its own. The fences of units
  // that are merged would wait for the copies that begin then, so this comes after them.
  __device__ __forceinline__ void release() const {
    hopper::fence_async_proxy();
    while (stages_.released < stages_.read) stages_.release();
  }

 private:
  Stages& stages_;
  int place_ = 0, own_ = 0;
};

// ---- links --------------------------------------------------------------------------------------

// Starts the copy of a link to shared memory. Called by a warp.
__device__ __forceinline__ void fetch_link(Link* to, const Link* from) {
  for (int i = static_cast<int>(threadIdx.x) % 32; i < static_cast<int>(sizeof(Link) / 16);
       i += 32) {
    mma::copy_async(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(from) + i,
                    true);
  }
}

// Starts the copy of a norm's weight.
__device__ __forceinline__ void fetch_norm(bfloat16* to, const Link& link) {
  if (link.is_attention || !link.product.norm_weight) return;
  for (int i = threadIdx.x * 8; i < link.product.sizes.k; i += kBlock * 8) {
    mma::copy_async(to + i, link.product.norm_weight + i, true);
  }
}

// Takes link after link.
template <int kSize>
__device__ __forceinline__ void compute(Header* header, const Link* links, LinkSlots& slots,
                                        char* memory, const Layout& layout, TileSums& sums,
                                        const Ring& ring, Places& places,
                                        hopper::Barrier* have_places) {
  const int warp = static_cast<int>(threadIdx.x) / 32, count = header->count,
            box_words = header->mail_words;
  const unsigned links_run = header->links_run;
  auto* const mail_words = reinterpret_cast<uint32_t*>(const_cast<Link*>(links + count));
  auto* const rows = reinterpret_cast<bfloat16*>(memory);
  auto* const kept = reinterpret_cast<bfloat16*>(memory + layout.kept);
  const auto norm_of = [&](int l) {
    return reinterpret_cast<bfloat16*>(memory + layout.norm) + l % 2 * layout.norm_elements;
  };
  if (warp == 0) fetch_link(&slots[0], links);
  if (warp == 1 && count > 1) fetch_link(&slots[1], links + 1);
  mma::copy_commit();
  if (header->pages.table) copy_places(places, header->pages);
  mma::copy_wait<0>();
  FirstWarps::sync();
  if (threadIdx.x == 0) hopper::barrier_arrive(have_places);
  const auto prepare = [&](Link& link) {
    if (link.is_attention) use_places(link.attention.pages, places);
  };
  if (threadIdx.x == 0) prepare(slots[0]);
  if (threadIdx.x == 32 && count > 1) prepare(slots[1]);
  fetch_norm(norm_of(0), slots[0]);
  mma::copy_commit();
  mma::copy_wait<0>();
  FirstWarps::sync();

  Stages stages{ring};
  for (int l = 0; l < count; ++l) {
    const Link& link = slots[l];
    // The inputs of the next links are on their way while this link waits for its mail.
    if (warp == 1 && l + 2 < count) fetch_link(&slots[l + 2], links + l + 2);
    if (threadIdx.x == 0 && l > 0 && l + 1 < count) prepare(slots[l + 1]);
    if (l + 1 < count) fetch_norm(norm_of(l + 1), slots[l + 1]);
    mma::copy_commit();
    const Mail before = mail_of(mail_words, box_words, links_run, l - 1);
    const Mail own = mail_of(mail_words, box_words, links_run, l);
    const bool mails = link.mails;
    if (link.is_attention) {
      const paged::Call& c = link.attention.call;
      const auto read_qkv = [&]<int kCount>(const int64_t(&at)[kCount], uint4(&words)[kCount]) {
        before.take(at, words);
      };
      const auto write = [&](int64_t at, bfloat16 x) {
        if (mails) own.write(at, x);
        c.o[at] = x;
      };
      const paged::Pages& pages = link.attention.pages;
      const Items items(c);
      for (int number = blockIdx.x; number < items.count; number += gridDim.x) {
        if (number >= static_cast<int>(gridDim.x)) FirstWarps::sync();
        const auto [token, kv_head, nth] = items.at(number);
        auto* const lines = reinterpret_cast<float*>(memory);
        const auto attend = [&](const auto& keys) {
          paged::step<kSize, kWarps, FirstWarps>(
              c, pages, token, kv_head, nth, lines, [] {}, [] {}, keys, read_qkv, write);
        };
        if constexpr (kSize == kSizeInRing) {
          const KeysFromRing keys(stages, parts_of(c, pages, token, nth));
          attend(keys);
          keys.release();
        } else {
          attend(
              paged::KeysFromMemory<kSize>{pages, pages.sequence(token), kv_head, c.call.kv_heads});
        }
      }
      mma::copy_wait<0>();
      FirstWarps::sync();
    } else {
      const Product& product = link.product;
      const Sizes sizes = product.sizes;
      bfloat16* const y = product.y;
      const auto write = [&](int output, bfloat16 x) {
        if (mails) own.write(output, x);
        y[output] = x;
      };
      const int begin = first_output(sizes.outputs, blockIdx.x),
                end = first_output(sizes.outputs, blockIdx.x + 1);
      read_rows(rows, norm_of(l), kept, product, before);
      mma::copy_wait<0>();
      FirstWarps::sync();
      // All warps have read x and the slots when a tile ends, so the next link may begin.
      if (product.swiglu) {
        multiply<true>(sizes.k, begin, end, rows, sums, stages, write);
      } else {
        multiply<false>(sizes.k, begin, end, rows, sums, stages, write);
      }
    }
  }
  // The last block prepares the next launch.
  if (threadIdx.x == 0 && atomicAdd(&header->left, 1u) == gridDim.x - 1) {
    header->links_run = links_run + static_cast<unsigned>(count);
    header->left = 0;
  }
}

#endif

template <int kSize>
__global__ void __launch_bounds__(kThreadsOfChain, 1)
    chain_kernel(Header* const header, const Layout layout) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint4 shared[];
  __shared__ TileSums sums;
  __shared__ LinkSlots slots;
  __shared__ hopper::Barrier full[kSlots], empty[kSlots], have_places;
  __shared__ volatile int copied;
  auto* const memory = reinterpret_cast<char*>(shared);
  auto& places = *reinterpret_cast<Places*>(memory + layout.places);
  const Ring ring = {reinterpret_cast<bfloat16*>(memory + layout.ring), layout.ring_rows, full,
                     empty};
  const auto* const links = reinterpret_cast<const Link*>(header + 1);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSlots; ++s) {
      hopper::barrier_init(&full[s], 1);
      hopper::barrier_init(&empty[s], kWarps * hopper::kReleaseArrivals);
    }
    hopper::barrier_init(&have_places, 1);
    copied = 0;
    hopper::barrier_init_fence();
    hopper::fence_async_proxy();
  }
  __syncthreads();
  if (warp >= kWarps) {
    hopper::give_registers<kCopyRegisters>();
    constexpr bool kKeysInRing = kSize == kSizeInRing;
    const auto links_of = [&](const auto& stage) {
      for_links(
          header, links, places, &have_places,
          [&](const Product& product) { for_weights(product, stage); },
          [&](const paged::Call& c, const paged::Pages& pages) {
            if constexpr (kKeysInRing) for_keys(c, pages, stage);
            if (!kKeysInRing && warp > kWarps) prefetch_keys(c, pages);
          });
    };
    if (warp == kWarps) {
      Copier copier(ring, &copied);
      links_of(
          [&](int rows, uint32_t bytes, const Piece& piece) { copier.stage(rows, bytes, piece); });
    } else if (warp == kWarps + 1) {
      Prefetcher prefetcher(&copied);
      links_of([&](int, uint32_t, const Piece& piece) { prefetcher.stage(piece); });
    } else if (warp == kWarps + 2) {
      check_places(links, header->count);
    }
  } else {
    hopper::take_registers<kComputeRegisters>();
    compute<kSize>(header, links, slots, memory, layout, sums, ring, places, &have_places);
  }
#endif
}

// ---- host ---------------------------------------------------------------------------------------

using Kernel = void (*)(Header*, Layout);
Kernel kernel_of(int head_size) { return head_size == 128 ? chain_kernel<128> : chain_kernel<64>; }

}  // namespace

void load_kernels(const CudaStream& cuda) {
  static std::array<std::once_flag, 64> loaded;
  std::call_once(loaded[static_cast<size_t>(cuda.index()) % loaded.size()], [] {
    for (const int head_size : {64, 128}) {
      LF_CUDA_CHECK(cudaFuncSetAttribute(kernel_of(head_size),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(kMemory)));
    }
  });
}

void launch(const CudaStream& cuda, Header* header, const Layout& layout, int head_size) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(cuda.multiprocessors());
  config.blockDim = kThreadsOfChain;
  config.dynamicSmemBytes = kMemory;
  config.stream = cuda.compute();
  config.attrs = &together;
  config.numAttrs = 1;
  LF_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel_of(head_size), header, layout));
}

}  // namespace llamaforge::cuda::chain

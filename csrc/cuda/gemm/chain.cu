// Products of few rows and attentions over pages, one after the other in one kernel: the decoding of a
// token. Its floor is the time to read the weights. They do not depend on the token, so some warps of
// each block do nothing but copy the block's part of all weights of the chain into a ring in shared
// memory, without regard to where the other warps are. The weights of some links are there when those
// warps begin them, and the memory is busy while blocks wait for each other.
//
// The 8 other warps take link after link. A block has an equal share of each product's outputs, in
// tiles as in few_rows.cu, with equal bits. Attentions are divided into items of a token, a kv head
// and a unit of keys.
//
// Blocks hand results to each other by mail: each number travels in a word of its own with a tag that
// names the link, so a reader that finds the tag has the number, and neither fences nor counters are
// needed. With a counter that all blocks wait for, and what a link needs fetched when the link begins,
// a step of TinyLlama-1.1B took 969 us instead of 853.
// Mail has kMailboxes boxes that links use in turn. A block writes to a box again when it has read the
// results of later links, and blocks make those only after they have read that box; so each link but
// the first reads the mail of the link before. The residual stream stays in each block's shared
// memory. All blocks must run at the same time, so the launch is a cooperative one.
//
// Stages of the ring have as many rows as their tile and lie one behind the other, so the ring is full
// of weights. A stage that would cross its end begins at its start again.
#include <array>
#include <cstring>
#include <mutex>
#include <utility>

#include "cuda/attention/paged_step.cuh"
#include "cuda/gemm/chain.h"
#include "cuda/gemm/few_rows.cuh"

namespace llamaforge::cuda {

namespace {

using few::FirstWarps;
using few::kBlock;
using few::kRowPad;
using few::kStagePitch;
using few::kTile;
using few::kWarps;
using few::Sizes;

// Two warpgroups compute. The third, whose registers they take, copies: without attention and waits
// for other blocks, a step took 822 us with one copying warp and 758 us with four.
constexpr int kCopyWarps = 4, kThreadsOfChain = kBlock + 32 * kCopyWarps;
[[maybe_unused]] constexpr int kCopyRegisters = 40, kComputeRegisters = 232;
// Rows of x. On an H200 a step of TinyLlama-1.1B with 1 row takes 0.94 of the time of its kernels one
// by one, with 2 rows as long, with 8 rows 1.3 times as long: each block reads all rows as mail.
constexpr int kMostRows = 1;
constexpr int kSlots = 32;                         // stages on their way, one for each lane of a copying warp
constexpr int kMailboxes = 4;
constexpr size_t kMostMemory = size_t{110} << 10;  // of a link, so that the ring has room

// Where a link finds its input: in memory since before the chain, in the mail of the link before, or,
// for the residual stream, in the block's own shared memory.
enum class From : uint8_t { kMemory, kMail, kKept };

struct Product {
  const bfloat16 *x, *skip, *norm_weight, *w;
  bfloat16 *r, *y;
  Sizes sizes;
  bool swiglu;
  From x_from, skip_from;
};

struct alignas(16) Link {
  bool is_attention, mails;  // mails: the next link reads the result
  union {
    Product product;
    struct {
      paged::Call call;
      From from;  // of qkv
    } attention;
  };
  Link() : is_attention(false), mails(false), product() {}
};

// The chain in global memory: this header, the links, and the mail.
struct alignas(16) Header {
  int count;           // links
  int mail_words;      // of a box
  unsigned links_run;  // in earlier launches
  unsigned left;       // blocks that have finished this launch
};

constexpr int kLinksAhead = 3;  // in shared memory: a link and the two after it
struct alignas(16) LinkSlots {
  char bytes[kLinksAhead][sizeof(Link)];
  __device__ __forceinline__ Link& operator[](int l) { return *reinterpret_cast<Link*>(bytes[l % kLinksAhead]); }
};

// Offsets in shared memory. The rows of x, or the lines of an attention, come first.
struct Layout {
  int norm, norm_elements;  // weights of the norms of this link and the next
  int kept;
  int ring, ring_rows;      // rows of kStagePitch elements
};

// A block's outputs of a product.
__device__ __forceinline__ int first_output(int outputs, unsigned block) {
  return static_cast<int>(int64_t{outputs} * block / gridDim.x);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct Ring {
  bfloat16* memory;
  int rows;
  hopper::Barrier *full, *empty;  // (kSlots)
  int* places;                    // (kSlots), row of each stage
};

// Brings the keys and values of the block's items of an attention to the L2 cache. Called by a warp.
__device__ void prefetch_keys(const paged::Call& c) {
  const int tokens = c.call.batch * c.call.time, per_token = c.call.kv_heads * c.most_units, page = c.pages.page;
  for (int item = blockIdx.x; item < tokens * per_token; item += gridDim.x) {
    const int token = item / per_token, kv_head = item % per_token / c.most_units;
    const int last = c.pages.position(token);
    const int first = c.call.first_key ? max(0, min(c.call.first_key[token], last)) : 0;
    const int begin = (first / paged::kUnit + item % c.most_units) * paged::kUnit;
    const int low = max(first, begin), high = min(last, begin + paged::kUnit);
    for (int index = low / page * page + static_cast<int>(threadIdx.x) % 32 * page; index < high; index += 32 * page) {
      const int from = max(low, index);
      const auto bytes = static_cast<uint32_t>((min(high, index + page) - from) * c.call.head_size * 2);
      for (const int head : {kv_head, c.call.kv_heads + kv_head}) {
        const bfloat16* const row = c.pages.row(token, head, from, c.call.kv_heads, c.call.head_size);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(row), "r"(bytes) : "memory");
      }
    }
  }
}

// Copies the block's weights of all links. Of the kCopyWarps warps that run it, number `part` has
// every kCopyWarps-th row.
__device__ void copy_weights(const Link* links, int count, const Ring& ring, int part) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int at = 0, free = ring.rows, nth = 0, oldest = 0;
  int taken = 0;  // rows of the stage in the lane's slot, with those left out before it
  for (int l = 0; l < count; ++l) {
    const Link& link = links[l];
    if (link.is_attention) {
      if (part == 0) prefetch_keys(link.attention.call);
      continue;
    }
    const bfloat16* const w = link.product.w;
    const Sizes sizes = link.product.sizes;
    const bool swiglu = link.product.swiglu;
    const int tile = swiglu ? kTile<true> : kTile<false>, chunks = few::stages_of_tile(sizes.k);
    const int end_output = first_output(sizes.outputs, blockIdx.x + 1);
    for (int output = first_output(sizes.outputs, blockIdx.x); output < end_output; output += tile) {
      const int own = min(tile, end_output - output), rows = swiglu ? 2 * own : own;
      for (int chunk = 0; chunk < chunks; ++chunk, ++nth) {
        const int slot = nth % kSlots;
        const bool wraps = at + rows > ring.rows;
        const int unused = wraps ? ring.rows - at : 0;
        while (free < rows + unused || nth - oldest == kSlots) {
          hopper::barrier_wait(&ring.empty[oldest % kSlots], oldest / kSlots % 2);
          free += __shfl_sync(0xffffffffu, taken, oldest % kSlots);
          ++oldest;
        }
        if (wraps) at = 0;
        if (lane == slot) taken = rows + unused;
        if (lane == 0 && part == 0) ring.places[slot] = at;
        few::fill_stage<kCopyWarps>(ring.memory + at * kStagePitch, &ring.full[slot], w, swiglu, output, own, chunk,
                                    sizes, part);
        free -= rows + unused;
        at += rows;
      }
    }
  }
}

// ---- mail ---------------------------------------------------------------------------------------------------------

struct Mail {
  uint32_t* words;
  uint32_t tag;  // in the upper half

  __device__ __forceinline__ void write(int64_t at, bfloat16 x) const {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(words + at), "r"(tag | x.bits) : "memory");
  }
  // Eight numbers from `at` on, once they are there.
  __device__ __forceinline__ uint4 take(int64_t at) const {
    uint4 a, b;
    do {
      a = load(words + at);
      b = load(words + at + 4);
    } while (!has_tag(a) || !has_tag(b));
    return packed(a, b);
  }
  // kCount times eight numbers, `stride` apart, with all loads on their way at once; only those before
  // `end` are given to put(at, numbers).
  template <int kCount, class Put>
  __device__ __forceinline__ void take(int64_t at, int stride, int64_t end, const Put& put) const {
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
    return {__byte_perm(a.x, a.y, 0x5410), __byte_perm(a.z, a.w, 0x5410), __byte_perm(b.x, b.y, 0x5410),
            __byte_perm(b.z, b.w, 0x5410)};
  }
};

// The mail of link number l of a chain.
__device__ __forceinline__ Mail mail_of(uint32_t* words, int box_words, unsigned links_run, int l) {
  return {words + int64_t{l % kMailboxes} * box_words, (links_run + static_cast<unsigned>(l) + 1) << 16};
}

// ---- links --------------------------------------------------------------------------------------------------------

// Fills `rows` with what the product takes. `before` is the mail of the link before.
__device__ __forceinline__ void read_rows(bfloat16* rows, const bfloat16* norm, bfloat16* kept, const Product& product,
                                          const Mail& before) {
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
  for (int row = 0; row < sizes.rows; ++row) {
    const int64_t begin = int64_t{row} * sizes.k, end = begin + sizes.k;
    for (int64_t at = begin + threadIdx.x * 8; at < end; at += kAtOnce * kBlock * 8) {
      before.take<kAtOnce>(at, kBlock * 8, end, [&](int64_t place, const uint4& words) {
        *reinterpret_cast<uint4*>(rows + row * pitch + (place - begin)) = words;
      });
    }
  }
}

// The block's outputs of a product whose rows of x are in shared memory. `nth` counts stages.
template <bool kSwiglu, class Write>
__device__ __forceinline__ void multiply(const Sizes& sizes, const bfloat16* rows, float (&sums)[2][kWarps][128],
                                         const Ring& ring, int& nth, const Write& write) {
  const int chunks = few::stages_of_tile(sizes.k), end_output = first_output(sizes.outputs, blockIdx.x + 1);
  float sum[1][4] = {};
  int buffer = 0;
  for (int output = first_output(sizes.outputs, blockIdx.x); output < end_output; output += kTile<kSwiglu>) {
    const int2 own = few::rows_of_lane<kSwiglu>(min(kTile<kSwiglu>, end_output - output));
    for (int chunk = 0; chunk < chunks; ++chunk, ++nth) {
      const int slot = nth % kSlots;
      hopper::barrier_wait(&ring.full[slot], nth / kSlots % 2);
      const bfloat16* const stage = ring.memory + ring.places[slot] * kStagePitch;
      few::multiply_stage<1>(sum, stage + own.x * kStagePitch, stage + own.y * kStagePitch, rows, chunk, sizes);
      hopper::release_stage(&ring.empty[slot]);
    }
    few::finish_tile<FirstWarps, kSwiglu, 1>(sum, sums[buffer], output, end_output, sizes, write);
    buffer ^= 1;
  }
}

// Starts the copy of a link to shared memory. Called by a warp.
__device__ __forceinline__ void fetch_link(Link* to, const Link* from) {
  for (int i = static_cast<int>(threadIdx.x) % 32; i < static_cast<int>(sizeof(Link) / 16); i += 32) {
    mma::copy_async(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(from) + i, true);
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
__device__ __forceinline__ void compute(Header* header, const Link* links, LinkSlots& slots, char* memory,
                                        const Layout& layout, float (&sums)[2][kWarps][128], const Ring& ring) {
  const int warp = static_cast<int>(threadIdx.x) / 32, count = header->count, box_words = header->mail_words;
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
  mma::copy_wait<0>();
  FirstWarps::sync();
  fetch_norm(norm_of(0), slots[0]);
  mma::copy_commit();
  mma::copy_wait<0>();
  FirstWarps::sync();

  int nth = 0;
  for (int l = 0; l < count; ++l) {
    const Link& link = slots[l];
    // What the next links need is on its way while this one computes.
    if (warp == 1 && l + 2 < count) fetch_link(&slots[l + 2], links + l + 2);
    if (l + 1 < count) fetch_norm(norm_of(l + 1), slots[l + 1]);
    mma::copy_commit();
    const Mail before = mail_of(mail_words, box_words, links_run, l - 1);
    const Mail own = mail_of(mail_words, box_words, links_run, l);
    const bool mails = link.mails;
    if (link.is_attention) {
      const paged::Call& c = link.attention.call;
      const From source = link.attention.from;
      const auto read_qkv = [&](int64_t at) {
        return source == From::kMail ? before.take(at) : few::load_latest(c.qkv + at);
      };
      const auto write = [&](int64_t at, bfloat16 x) {
        if (mails) own.write(at, x);
        c.o[at] = x;
      };
      const int tokens = c.call.batch * c.call.time, per_token = c.call.kv_heads * c.most_units;
      for (int item = blockIdx.x; item < tokens * per_token; item += gridDim.x) {
        if (item >= static_cast<int>(gridDim.x)) FirstWarps::sync();
        paged::step<kSize, kWarps, FirstWarps>(
            c, item / per_token, item % per_token / c.most_units, item % c.most_units,
            reinterpret_cast<float*>(memory), [] {}, read_qkv, write);
      }
    } else {
      const Product& product = link.product;
      const Sizes sizes = product.sizes;
      bfloat16* const y = product.y;
      const auto write = [&](int row, int output, bfloat16 x) {
        const int64_t at = int64_t{row} * sizes.outputs + output;
        if (mails) own.write(at, x);
        y[at] = x;
      };
      read_rows(rows, norm_of(l), kept, product, before);
      FirstWarps::sync();
      if (product.swiglu) {
        multiply<true>(sizes, rows, sums, ring, nth, write);
      } else {
        multiply<false>(sizes, rows, sums, ring, nth, write);
      }
    }
    mma::copy_wait<0>();
    FirstWarps::sync();
  }
  // The last block prepares the next launch.
  if (threadIdx.x == 0 && atomicAdd(&header->left, 1u) == gridDim.x - 1) {
    header->links_run = links_run + static_cast<unsigned>(count);
    header->left = 0;
  }
}

#endif

template <int kSize>
__global__ void __launch_bounds__(kThreadsOfChain, 1) chain_kernel(Header* const header, const Layout layout) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint4 shared[];
  __shared__ float sums[2][kWarps][128];
  __shared__ LinkSlots slots;
  __shared__ hopper::Barrier full[kSlots], empty[kSlots];
  __shared__ int places[kSlots];
  auto* const memory = reinterpret_cast<char*>(shared);
  const Ring ring = {reinterpret_cast<bfloat16*>(memory + layout.ring), layout.ring_rows, full, empty, places};
  const auto* const links = reinterpret_cast<const Link*>(header + 1);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSlots; ++s) {
      hopper::barrier_init(&full[s], 1);
      hopper::barrier_init(&empty[s], kWarps * hopper::kReleaseArrivals);
    }
    hopper::barrier_init_fence();
    hopper::fence_async_proxy();
  }
  __syncthreads();
  if (warp >= kWarps) {
    hopper::give_registers<kCopyRegisters>();
    copy_weights(links, header->count, ring, warp - kWarps);
  } else {
    hopper::take_registers<kComputeRegisters>();
    compute<kSize>(header, links, slots, memory, layout, sums, ring);
  }
#endif
}

// ---- host ---------------------------------------------------------------------------------------------------------

using Kernel = void (*)(Header*, Layout);
Kernel kernel_of(int head_size) { return head_size == 128 ? chain_kernel<128> : chain_kernel<64>; }

constexpr size_t kStaticMemory = sizeof(float) * 2 * kWarps * 128 + kLinksAhead * sizeof(Link) + kSlots * 20 + 1024;
constexpr size_t kOfBlock = size_t{227} << 10;
constexpr size_t kDynamicMemory = kOfBlock - kStaticMemory;

// Loads the kernels, which a capture must not do.
void load_kernels(const CudaStream& cuda) {
  static std::array<std::once_flag, 64> loaded;
  std::call_once(loaded[static_cast<size_t>(cuda.index()) % loaded.size()], [] {
    for (const int head_size : {64, 128}) {
      LF_CUDA_CHECK(cudaFuncSetAttribute(kernel_of(head_size), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(kDynamicMemory)));
    }
  });
}

int round_up(size_t bytes) { return static_cast<int>((bytes + 127) / 128 * 128); }

class Chain final : public Unlaunched {
 public:
  explicit Chain(CudaStream& cuda) : cuda_(cuda) {}

  // Both return false, having done nothing, if the op cannot follow those of the chain.
  bool add(const FewRows& call) {
    Link link;
    link.product = {call.x, call.skip,          call.norm_weight, call.w, call.r, call.y, few::sizes_of(call),
                    call.swiglu, From::kMemory, From::kMemory};
    Product& product = link.product;
    const int64_t inputs = int64_t{call.rows} * call.k;
    if (!find(call.x, inputs, call.skip ? call.k : 0, product.x_from)) return false;
    if (call.skip && !find(call.skip, inputs, 0, product.skip_from)) return false;
    if (!use_mail(product.x_from == From::kMail || product.skip_from == From::kMail)) return false;
    if (call.skip) {
      kept_ = {call.r, call.r + inputs};
      kept_width_ = call.k;
      kept_elements_ = std::max(kept_elements_, inputs);
      made_.push_back(kept_);
    }
    if (call.norm_weight) norm_elements_ = std::max(norm_elements_, call.k);
    memory_ = std::max(memory_, few::row_bytes(call));
    push(link, call.y, int64_t{call.rows} * product.sizes.outputs, [this, call] { launch_few_rows(cuda_, call); });
    return true;
  }

  bool add(const paged::Call& call, std::function<void()> launch_alone) {
    const int64_t tokens = int64_t{call.call.batch} * call.call.time;
    Link link;
    link.is_attention = true;
    link.attention = {call, From::kMemory};
    if (head_size_ != 0 && head_size_ != call.call.head_size) return false;
    if (!find(call.qkv, tokens * call.call.width(), 0, link.attention.from)) return false;
    if (!use_mail(link.attention.from == From::kMail)) return false;
    head_size_ = call.call.head_size;
    memory_ = std::max(memory_, paged::lines_bytes(call.call));
    push(link, call.o, tokens * call.call.heads * call.call.head_size, std::move(launch_alone));
    return true;
  }

  void launch() override {
    if (links_.size() == 1) return launch_alone_();
    Header header = {};
    header.count = static_cast<int>(links_.size());
    header.mail_words = static_cast<int>(mail_words_);
    const size_t of_links = links_.size() * sizeof(Link);
    std::vector<char> content(sizeof header + of_links + kMailboxes * static_cast<size_t>(mail_words_) * sizeof(uint32_t));
    std::memcpy(content.data(), &header, sizeof header);
    std::memcpy(content.data() + sizeof header, static_cast<const void*>(links_.data()), of_links);
    auto* const on_device = static_cast<Header*>(cuda_.graph_memory(std::move(content)));
    Layout layout = {};
    layout.norm = round_up(memory_);
    layout.norm_elements = norm_elements_;
    layout.kept = layout.norm + round_up(static_cast<size_t>(norm_elements_) * 2 * sizeof(bfloat16));
    layout.ring = layout.kept + round_up(static_cast<size_t>(kept_elements_) * sizeof(bfloat16));
    layout.ring_rows = static_cast<int>((kDynamicMemory - static_cast<size_t>(layout.ring)) / few::kStageRowBytes);
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(cuda_.multiprocessors());
    config.blockDim = kThreadsOfChain;
    config.dynamicSmemBytes = kDynamicMemory;
    config.stream = cuda_.compute();
    config.attrs = &together;
    config.numAttrs = 1;
    LF_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel_of(head_size_), on_device, layout));
  }

 private:
  struct Range {
    const bfloat16 *begin = nullptr, *end = nullptr;
    bool overlaps(const Range& other) const { return begin < other.end && end > other.begin; }
    bool operator==(const Range&) const = default;
  };

  // Where a link finds `count` numbers from x on; kept_width: the length of its rows if it may find
  // them in the residual stream. Returns false if an earlier link makes them, and they are neither in
  // the mail nor kept.
  bool find(const bfloat16* x, int64_t count, int kept_width, From& from) const {
    const Range own = {x, x + count};
    from = From::kMemory;
    if (std::none_of(made_.begin(), made_.end(), [&](const Range& range) { return range.overlaps(own); })) return true;
    from = last_ == own ? From::kMail : From::kKept;
    return from == From::kMail || (kept_ == own && kept_width_ == kept_width);
  }
  // Whether a link that reads the last link's mail or not can follow: all but the first must, or they
  // would not keep up with the mail.
  bool use_mail(bool used) {
    if (links_.empty()) return true;
    if (!used) return false;
    links_.back().mails = true;
    mail_words_ = std::max<int64_t>(mail_words_, last_.end - last_.begin);
    return true;
  }
  void push(const Link& link, const bfloat16* result, int64_t count, std::function<void()> launch_alone) {
    if (links_.empty()) launch_alone_ = std::move(launch_alone);
    links_.push_back(link);
    last_ = {result, result + count};
    if (kept_.overlaps(last_)) kept_ = {};
    made_.push_back(last_);
  }

  CudaStream& cuda_;
  std::vector<Link> links_;
  std::function<void()> launch_alone_;
  int head_size_ = 0, norm_elements_ = 0;
  size_t memory_ = 0;
  int64_t mail_words_ = 0, kept_elements_ = 0;
  std::vector<Range> made_;  // by the links
  Range last_, kept_;        // the last link's result, and the residual stream
  int kept_width_ = 0;
};

// Adds an op to the stream's chain, or to a new one.
template <class... Op>
bool add(CudaStream& cuda, const Op&... op) {
  auto* const chain = static_cast<Chain*>(cuda.unlaunched());
  if (chain && chain->add(op...)) return true;
  cuda.compute();
  auto made = std::make_unique<Chain>(cuda);
  if (!made->add(op...)) return false;
  cuda.hold(std::move(made));
  return true;
}

// Whether each copying warp has a row in the first tile of each block, and few enough stages follow
// without one. A warp that has none need not keep up with the others, and barriers tell only one
// round of kSlots stages from the next. A block without outputs would not keep up with the mail either.
bool occupies(const CudaStream& cuda, const Sizes& sizes, bool swiglu) {
  const int rows_of_first_tile = sizes.outputs / cuda.multiprocessors() * (swiglu ? 2 : 1);
  return rows_of_first_tile >= kCopyWarps && few::stages_of_tile(sizes.k) <= kSlots / 2;
}

}  // namespace

bool chain_product(CudaStream& cuda, const FewRows& call) {
  const bool takes = cuda.compute_capability() == 90 && call.rows <= kMostRows && call.k % 32 == 0 &&
                     few::row_bytes(call) <= kMostMemory && occupies(cuda, few::sizes_of(call), call.swiglu);
  if (!takes) return false;
  if (!cuda.capturing()) {
    load_kernels(cuda);
    return false;
  }
  return few::early(cuda, call) && add(cuda, call);
}

bool chain_attention(CudaStream& cuda, const paged::Call& call, std::function<void()> launch_alone) {
  const bool takes = cuda.compute_capability() == 90 && cuda.capturing() &&
                     call.call.batch * call.call.time <= kMostRows && paged::lines_bytes(call.call) <= kMostMemory;
  return takes && add(cuda, call, launch_alone);
}

}  // namespace llamaforge::cuda

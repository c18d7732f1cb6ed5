// The links of a chain, as chain.cu makes them and the kernel of chain_kernel.cu takes them.
#pragma once

#include "cuda/attention/paged_step.cuh"
#include "cuda/gemm/few_rows.cuh"

namespace llamaforge::cuda::chain {

// Two warpgroups compute. Of the third, whose registers they take, one warp copies, one prefetches
// and one checks places.
constexpr int kThreadsOfChain = few::kBlock + 128;
constexpr int kCopyRegisters = 56, kComputeRegisters = 224;
// A stage of weights has some columns of the low or the high rows of a tile, a copy of 4 KB for
// each row.
constexpr int kStage = 2048, kPitch = few::kStagePitch<kStage>, kRowsOfStage = 8;
// Heads of 64 find their keys in the ring: a part (paged::kParts) has two rows of keys and two of
// values. All parts of an item lie there at once, and one more may be left out at the ring's end.
constexpr int kSizeInRing = 64, kKeyRows = 4;
constexpr int kLeastRows = 3 * kRowsOfStage, kLeastRowsWithKeys = (paged::kParts + 1) * kKeyRows;
constexpr int kSlots = 32;  // stages in the ring, one for each lane of the copying warp
// Stages on their way at most: mail waits behind copies. Two are enough for the memory's rate.
constexpr int kInFlight = 2;
constexpr int kPrefetched = 3;  // stages in the L2 cache that come after those of the ring
constexpr int kMailboxes = 4;

// Where a link finds its input: in memory since before the chain, in the mail of the link before,
// or, for the residual stream, in the block's own shared memory.
enum class From : uint8_t { kMemory, kMail, kKept };

struct Product {
  const bfloat16 *x, *skip, *norm_weight, *w;
  bfloat16 *r, *y;
  few::Sizes sizes;
  bool swiglu;
  From x_from, skip_from;
};

struct alignas(16) Link {
  bool is_attention, mails;  // mails: the next link reads the result
  union {
    Product product;
    struct {
      paged::Call call;
      paged::Pages pages;  // those of the call, with their tables in shared memory
    } attention;           // of mail
  };
  Link() : is_attention(false), mails(false), product() {}
};

// Pairs of words of the mail between units (chain_units.cuh): those of a head and unit.
constexpr int unit_pairs(int head_size) { return 1 + head_size / 2; }

// The chain in global memory: this header, the links, the mail, and the mail between units.
struct alignas(16) Header {
  int count;           // links
  int mail_words;      // of a box
  unsigned links_run;  // in earlier launches
  unsigned left;       // blocks that have finished this launch
  paged::Pages pages;  // tables of all attentions, or none
};

// A token's place and pages in shared memory. The attentions of all layers have the same ones, and
// from global memory each of them would wait for one after the other.
struct Places {
  int32_t position, unused[3];
  int32_t table[1];  // as many pages as the token has
};
inline size_t places_bytes(const paged::Pages& pages) {
  return sizeof(Places) + static_cast<size_t>(pages.table_width) * sizeof(int32_t);
}

// Links in shared memory: one, the two after it, and the one before it, whose end the first warp
// may still write.
constexpr int kLinksAhead = 4;
struct alignas(16) LinkSlots {
  char bytes[kLinksAhead][sizeof(Link)];
  __device__ __forceinline__ Link& operator[](int l) {
    return *reinterpret_cast<Link*>(bytes[l % kLinksAhead]);
  }
};

// Offsets in shared memory. The rows of x, or the lines of an attention, come first.
struct Layout {
  int norm, norm_elements;  // weights of the norms of this link and the next
  int kept, places;
  int ring, ring_rows;  // rows of kPitch elements
};

// Shared memory for all that a layout divides, in bytes.
constexpr size_t kMemory = (size_t{227} << 10) -
                           sizeof(float) * 2 * few::kWarps * few::kTile<false> - sizeof(LinkSlots) -
                           kSlots * 16 - 384;

// Loads the kernels, which a capture must not do.
void load_kernels(const CudaStream& cuda);
// Launches a chain that lies behind its header in device memory. head_size: of its attentions, or
// 0.
void launch(const CudaStream& cuda, Header* header, const Layout& layout, int head_size);

}  // namespace llamaforge::cuda::chain

// The links of a chain, as chain.cu makes them and the kernel of chain_kernel.cu takes them.
#pragma once

#include "cuda/attention/paged_step.cuh"
#include "cuda/gemm/few_rows.cuh"

namespace llamaforge::cuda::chain {

// Two warpgroups compute. Of the third, whose registers they take, one warp copies.
constexpr int kThreadsOfChain = few::kBlock + 128;
constexpr int kCopyRegisters = 40, kComputeRegisters = 232;
// Columns of a stage: copies of 2 KB reach 4.6 TB/s on an H200, copies of 1 KB by one warp 2.5.
constexpr int kStage = 1024, kPitch = few::kStagePitch<kStage>;
constexpr int kSlots = 32;  // stages in the ring, one for each lane of the copying warp
// Stages on their way at most: mail waits behind copies. Two are enough for the memory's rate.
constexpr int kInFlight = 2;
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
  __device__ __forceinline__ Link& operator[](int l) {
    return *reinterpret_cast<Link*>(bytes[l % kLinksAhead]);
  }
};

// Offsets in shared memory. The rows of x, or the lines of an attention, come first.
struct Layout {
  int norm, norm_elements;  // weights of the norms of this link and the next
  int kept;
  int ring, ring_rows;  // rows of kPitch elements
};

// Shared memory for all that a layout divides, in bytes.
constexpr size_t kMemory = (size_t{227} << 10) - sizeof(float) * 2 * few::kWarps * 128 -
                           sizeof(LinkSlots) - kSlots * 16 - 1024;

// Loads the kernels, which a capture must not do.
void load_kernels(const CudaStream& cuda);
// Launches a chain that lies behind its header in device memory. head_size: of its attentions, or
// 0.
void launch(const CudaStream& cuda, Header* header, const Layout& layout, int head_size);

}  // namespace llamaforge::cuda::chain

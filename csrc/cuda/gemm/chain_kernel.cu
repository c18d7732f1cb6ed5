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
  return static_cast<int>(int64_t{outputs} * block / gridDim.x);
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

// Brings the keys and values of the block's items of an attention to the L2 cache. Called by a
// warp.
__device__ void prefetch_keys(const paged::Call& c) {
  const int tokens = c.call.batch * c.call.time, per_token = c.call.kv_heads * c.most_units,
            page = c.pages.page;
  for (int item = blockIdx.x; item < tokens * per_token; item += gridDim.x) {
    const int token = item / per_token, kv_head = item % per_token / c.most_units;
    const int last = c.pages.position(token);
    const int first = c.call.first_key ? max(0, min(c.call.first_key[token], last)) : 0;
    const int begin = (first / paged::kUnit + item % c.most_units) * paged::kUnit;
    const int low = max(first, begin), high = min(last, begin + paged::kUnit);
    for (int index = low / page * page + static_cast<int>(threadIdx.x) % 32 * page; index < high;
         index += 32 * page) {
      const int from = max(low, index);
      const auto bytes =
          static_cast<uint32_t>((min(high, index + page) - from) * c.call.head_size * 2);
      for (const int head : {kv_head, c.call.kv_heads + kv_head}) {
        const bfloat16* const row =
            c.pages.row(token, head, from, c.call.kv_heads, c.call.head_size);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(row), "r"(bytes)
                     : "memory");
      }
    }
  }
}

// Copies the block's weights of all links. Called by a warp.
__device__ void copy_weights(const Link* links, int count, const Ring& ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Cursor cursor;
  int free = ring.rows, nth = 0, oldest = 0;
  int taken = 0;  // rows of the stage in the lane's slot, with those left out before it
  for (int l = 0; l < count; ++l) {
    const Link& link = links[l];
    if (link.is_attention) {
      prefetch_keys(link.attention.call);
      continue;
    }
    const bfloat16* const w = link.product.w;
    const Sizes sizes = link.product.sizes;
    const bool swiglu = link.product.swiglu;
    const int tile = swiglu ? kTile<true> : kTile<false>,
              stages = few::stages_of_tile<kStage>(sizes.k);
    const int end_output = first_output(sizes.outputs, blockIdx.x + 1);
    for (int output = first_output(sizes.outputs, blockIdx.x); output < end_output;
         output += tile) {
      const int own = min(tile, end_output - output), rows = swiglu ? 2 * own : own;
      for (int stage = 0; stage < stages; ++stage, ++nth) {
        const int slot = nth % kSlots;
        const int used = rows + cursor.left_out(ring, rows);
        while (free < used || nth - oldest == kSlots) {
          hopper::barrier_wait(&ring.empty[oldest % kSlots], oldest / kSlots % 2);
          free += __shfl_sync(0xffffffffu, taken, oldest % kSlots);
          ++oldest;
        }
        if (nth >= kInFlight) {
          const int before = nth - kInFlight;
          hopper::barrier_wait(&ring.full[before % kSlots], before / kSlots % 2);
        }
        if (lane == slot) taken = used;
        few::fill_stage<kStage>(ring.memory + cursor.take(ring, rows) * kPitch, &ring.full[slot], w,
                                swiglu, output, own, stage, sizes);
        free -= used;
      }
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
    if (static_cast<int>(threadIdx.x) % 32 == __ffs(static_cast<int>(asking)) - 1) {
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
    await(at[0]);
    uint4 a[kCount], b[kCount];
    bool all;
    do {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        a[i] = load(words + at[i]);
        b[i] = load(words + at[i] + 4);
      }
      all = true;
#pragma unroll
      for (int i = 0; i < kCount; ++i) all = all && has_tag(a[i]) && has_tag(b[i]);
    } while (!all);
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

// ---- links --------------------------------------------------------------------------------------

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

// The block's outputs of a product whose rows of x are in shared memory. `nth` counts stages, and
// `cursor` knows where they lie.
template <bool kSwiglu, class Write>
__device__ __forceinline__ void multiply(const Sizes& sizes, const bfloat16* rows,
                                         float (&sums)[2][kWarps][128], const Ring& ring,
                                         Cursor& cursor, int& nth, const Write& write) {
  constexpr int kChunks = kStage / few::kChunk;
  const int stages = few::stages_of_tile<kStage>(sizes.k),
            end_output = first_output(sizes.outputs, blockIdx.x + 1);
  float sum[1][4] = {};
  int buffer = 0;
  for (int output = first_output(sizes.outputs, blockIdx.x); output < end_output;
       output += kTile<kSwiglu>) {
    const int count = min(kTile<kSwiglu>, end_output - output);
    const int2 own = few::rows_of_lane<kSwiglu>(count);
    for (int stage = 0; stage < stages; ++stage, ++nth) {
      const int slot = nth % kSlots;
      const int place = cursor.take(ring, kSwiglu ? 2 * count : count);
      const bfloat16* const low = ring.memory + (place + own.x) * kPitch;
      const bfloat16* const high = ring.memory + (place + own.y) * kPitch;
      hopper::barrier_wait(&ring.full[slot], nth / kSlots % 2);
      if ((stage + 1) * kStage <= sizes.k) {
        few::multiply_stage<kStage>(sum, low, high, rows + stage * kStage, sizes);
      } else {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          few::multiply_chunk<1>(sum, low + c * few::kChunk, high + c * few::kChunk, rows,
                                 stage * kChunks + c, sizes);
        }
      }
      hopper::release_stage(&ring.empty[slot]);
    }
    few::finish_tile<FirstWarps, kSwiglu, 1>(sum, sums[buffer], output, end_output, sizes, write);
    buffer ^= 1;
  }
}

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
                                        char* memory, const Layout& layout,
                                        float (&sums)[2][kWarps][128], const Ring& ring) {
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
  mma::copy_wait<0>();
  FirstWarps::sync();
  fetch_norm(norm_of(0), slots[0]);
  mma::copy_commit();
  mma::copy_wait<0>();
  FirstWarps::sync();

  Cursor cursor;
  int nth = 0;
  for (int l = 0; l < count; ++l) {
    const Link& link = slots[l];
    // The inputs of the next links are on their way while this link computes.
    if (warp == 1 && l + 2 < count) fetch_link(&slots[l + 2], links + l + 2);
    if (l + 1 < count) fetch_norm(norm_of(l + 1), slots[l + 1]);
    mma::copy_commit();
    const Mail before = mail_of(mail_words, box_words, links_run, l - 1);
    const Mail own = mail_of(mail_words, box_words, links_run, l);
    const bool mails = link.mails;
    if (link.is_attention) {
      const paged::Call& c = link.attention.call;
      const From source = link.attention.from;
      const auto read_qkv = [&]<int kCount>(const int64_t(&at)[kCount], uint4(&words)[kCount]) {
        if (source == From::kMail) return before.take(at, words);
        paged::ReadMemory{c.qkv}(at, words);
      };
      const auto write = [&](int64_t at, bfloat16 x) {
        if (mails) own.write(at, x);
        c.o[at] = x;
      };
      const int tokens = c.call.batch * c.call.time, per_token = c.call.kv_heads * c.most_units;
      for (int item = blockIdx.x; item < tokens * per_token; item += gridDim.x) {
        if (item >= static_cast<int>(gridDim.x)) FirstWarps::sync();
        // A division takes some 20 instructions, for which all blocks wait.
        const int token = tokens == 1 ? 0 : item / per_token, of_token = item - token * per_token;
        const int kv_head = of_token / c.most_units;
        paged::step<kSize, kWarps, FirstWarps>(
            c, token, kv_head, of_token - kv_head * c.most_units, reinterpret_cast<float*>(memory),
            [] {}, read_qkv, write);
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
        multiply<true>(sizes, rows, sums, ring, cursor, nth, write);
      } else {
        multiply<false>(sizes, rows, sums, ring, cursor, nth, write);
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
__global__ void __launch_bounds__(kThreadsOfChain, 1)
    chain_kernel(Header* const header, const Layout layout) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint4 shared[];
  __shared__ float sums[2][kWarps][128];
  __shared__ LinkSlots slots;
  __shared__ hopper::Barrier full[kSlots], empty[kSlots];
  auto* const memory = reinterpret_cast<char*>(shared);
  const Ring ring = {reinterpret_cast<bfloat16*>(memory + layout.ring), layout.ring_rows, full,
                     empty};
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
    if (warp == kWarps) copy_weights(links, header->count, ring);
  } else {
    hopper::take_registers<kComputeRegisters>();
    compute<kSize>(header, links, slots, memory, layout, sums, ring);
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

// The kernel of a chain (chain.cu says how it works): its warps, and those that compute, link after
// link.
#include <array>
#include <mutex>

#include "cuda/gemm/chain_copies.cuh"
#include "cuda/gemm/chain_mail.cuh"
#include "cuda/gemm/chain_product.cuh"
#include "cuda/gemm/chain_units.cuh"

namespace llamaforge::cuda::chain {

namespace {

using few::FirstWarps;
using few::kBlock;
using few::kRowPad;
using few::kWarps;
using few::Sizes;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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
  // Gives all parts back; a warp may have written the newest key to its own.
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
      const auto write_one = [&](int64_t at, float x) {
        const auto rounded = narrow<bfloat16>(x);
        if (mails) own.write(at, rounded);
        c.o[at] = rounded;
      };
      const auto write = [&](int64_t at, const paged::Pair& sum) {
        write_one(at, sum.x / sum.total);
        write_one(at + 1, sum.y / sum.total);
      };
      const UnitMail<kSize> units = {
          reinterpret_cast<ulonglong2*>(mail_words + int64_t{kMailboxes} * box_words),
          links_run + static_cast<unsigned>(l) + 1};
      const paged::Pages& pages = link.attention.pages;
      const Items items(c);
      for (int number = blockIdx.x; number < items.count; number += gridDim.x) {
        if (number >= static_cast<int>(gridDim.x)) FirstWarps::sync();
        const auto [token, kv_head, nth] = items.at(number);
        auto* const lines = reinterpret_cast<float*>(memory);
        const auto put = [&](int64_t head, int d, const paged::Pair& sum) {
          units.put(c, head, nth, d, sum);
        };
        const auto attend = [&](const auto& keys) {
          paged::step<kSize, kWarps, FirstWarps>(
              c, pages, token, kv_head, nth, lines, [] {}, [] {}, keys, read_qkv, write, put);
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
      if (c.most_units > 1) units.merge(c, pages, items.count, write);
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
  extern __shared__ __align__(few::kCopyAlignment) uint4 shared[];
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

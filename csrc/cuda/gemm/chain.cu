// Products of one row and attentions over pages, one after the other in one kernel: the decoding of
// a token. Its floor is the time to read the weights. They do not depend on the token, so one warp
// of each block does nothing but copy the block's part of all weights of the chain into a ring in
// shared memory, without regard to where the other warps are. The weights of some links are there
// when those warps begin them. Where the ring is full, another warp brings the next stages to the
// L2 cache, so that the memory does not rest while blocks wait for each other.
//
// 8 other warps take link after link. A block has an equal share of each product's outputs, in
// tiles as in few_rows.cu, with equal bits. The reads of a stage are on their way while the stage
// before is multiplied. Attentions are divided into items of a token, a kv head and a unit of keys;
// earlier keys and values of heads of 64 come through the ring as well.
//
// Blocks hand results to each other by mail: each number travels in a word of its own with a tag
// that names the link, so a reader that finds the tag has the number, and neither fences nor
// counters are needed. Units of one attention hand over their results likewise. With a counter that
// all blocks wait for, and a link's inputs fetched when the link begins, a step of TinyLlama-1.1B
// took 969 us instead of 853. Of a warp that waits, one lane asks for its first number, and the
// others ask once that number is there: questions of 132 blocks for whole rows slow down the
// senders and the copies.
//
// Mail has a few boxes that links use in turn. A block writes to a box again when it has read the
// results of later links, and blocks make those only after they have read that box; so each link
// but the first reads the mail of the link before. The residual stream stays in each block's shared
// memory. All blocks must run at the same time, so the launch is a cooperative one.
//
// Stages of the ring have as many rows as they copy and lie one behind the other, so the ring is
// full of weights. A stage that would cross its end begins at its start again.
//
// No register of the kernel may be spilled in its heads of 64: local memory goes through an L1
// cache of some 28 KB (docs/LOG.md).
#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/gemm/chain.h"
#include "cuda/gemm/chain_link.cuh"

namespace llamaforge::cuda {

namespace {

using chain::From;
using chain::Header;
using chain::Layout;
using chain::Link;
using chain::Product;

// Rows of x that the kernel can take. Each block reads all rows as mail, and when it took more, a
// step of TinyLlama-1.1B on an H200 with 2 rows took as long as its kernels one by one, with 8
// rows 1.3 times as long.
constexpr int kMostRows = 1;
constexpr size_t kMostMemory = size_t{110} << 10;  // of a link, so that the ring has room
constexpr size_t kMostPlaces = size_t{32} << 10;   // of a token's pages

int round_up(size_t bytes, size_t multiple = 16) {
  return static_cast<int>((bytes + multiple - 1) / multiple * multiple);
}

// What the links of a chain need of a block's shared memory.
struct Needs {
  size_t link = 0, places = 0;  // bytes: of the largest link, and of a token's pages
  int norm_elements = 0;
  int64_t kept_elements = 0;
  bool keys_in_ring = false;

  Layout layout() const {
    Layout layout = {};
    layout.norm = round_up(link);
    layout.norm_elements = norm_elements;
    layout.kept = layout.norm + round_up(static_cast<size_t>(norm_elements) * 2 * sizeof(bfloat16));
    layout.places = layout.kept + round_up(static_cast<size_t>(kept_elements) * sizeof(bfloat16));
    layout.ring = round_up(layout.places + places, few::kCopyAlignment);
    const auto room = static_cast<int64_t>(chain::kMemory) - layout.ring;
    layout.ring_rows = static_cast<int>(std::max<int64_t>(room, 0) /
                                        static_cast<int64_t>(chain::kPitch * sizeof(bfloat16)));
    return layout;
  }
  bool fit() const {
    return layout().ring_rows >= (keys_in_ring ? chain::kLeastRowsWithKeys : chain::kLeastRows);
  }
};

class Chain final : public Unlaunched {
 public:
  explicit Chain(CudaStream& cuda) : cuda_(cuda) {}

  // Both return false, having done nothing, if the op cannot follow those of the chain.
  bool add(const FewRows& call) {
    Link link;
    Product& product = link.product;
    product = {.x = call.x,
               .skip = call.skip,
               .norm_weight = call.norm_weight,
               .w = call.w,
               .r = call.r,
               .y = call.y,
               .sizes = few::sizes_of(call),
               .swiglu = call.swiglu,
               .x_from = From::kMemory,
               .skip_from = From::kMemory};
    const int64_t inputs = int64_t{call.rows} * call.k;
    if (!find(call.x, inputs, call.skip ? call.k : 0, product.x_from)) return false;
    if (call.skip && !find(call.skip, inputs, 0, product.skip_from)) return false;
    Needs needs = needs_;
    needs.link = std::max(needs.link, few::row_bytes(call));
    if (call.norm_weight) needs.norm_elements = std::max(needs.norm_elements, call.k);
    if (call.skip) needs.kept_elements = std::max(needs.kept_elements, inputs);
    if (!needs.fit()) return false;
    if (!use_mail(product.x_from == From::kMail || product.skip_from == From::kMail)) return false;
    needs_ = needs;
    if (call.skip) {
      kept_ = {call.r, call.r + inputs};
      kept_width_ = call.k;
      made_.push_back(kept_);
    }
    push(link, call.y, int64_t{call.rows} * product.sizes.outputs,
         [this, call] { launch_few_rows(cuda_, call); });
    return true;
  }

  bool add(const paged::Call& call, std::function<void()> launch_alone) {
    const int64_t tokens = int64_t{call.call.batch} * call.call.time;
    Link link;
    link.is_attention = true;
    link.attention = {call, call.pages};
    const bool fits =
        head_size_ == 0 || (head_size_ == call.call.head_size && same_tables(call.pages, pages_));
    From from;
    if (!fits || !find(call.qkv, tokens * call.call.width(), 0, from)) return false;
    Needs needs = needs_;
    needs.link = std::max(needs.link, paged::lines_bytes(call.call));
    needs.places = chain::places_bytes(call.pages);
    needs.keys_in_ring = call.call.head_size == chain::kSizeInRing;
    if (from != From::kMail || !needs.fit()) return false;
    use_mail(true);
    needs_ = needs;
    pages_ = call.pages;
    head_size_ = call.call.head_size;
    if (call.most_units > 1) {
      unit_pairs_ = std::max(
          unit_pairs_, tokens * call.call.heads * call.most_units * chain::unit_pairs(head_size_));
    }
    push(link, call.o, tokens * call.call.heads * call.call.head_size, std::move(launch_alone));
    return true;
  }

  void launch() override {
    if (links_.size() == 1) return launch_alone_();
    Header header = {};
    header.count = static_cast<int>(links_.size());
    header.mail_words = static_cast<int>(mail_words_);
    header.pages = pages_;
    const size_t of_links = links_.size() * sizeof(Link);
    const size_t of_mail = chain::kMailboxes * static_cast<size_t>(mail_words_) * sizeof(uint32_t);
    const size_t of_units = static_cast<size_t>(unit_pairs_) * sizeof(ulonglong2);
    std::vector<char> content(sizeof header + of_links + of_mail + of_units);
    std::memcpy(content.data(), &header, sizeof header);
    std::memcpy(content.data() + sizeof header, static_cast<const void*>(links_.data()), of_links);
    auto* const on_device = static_cast<Header*>(cuda_.graph_memory(std::move(content)));
    chain::launch(cuda_, on_device, needs_.layout(), head_size_);
  }

 private:
  struct Range {
    const bfloat16 *begin = nullptr, *end = nullptr;
    bool overlaps(const Range& other) const { return begin < other.end && end > other.begin; }
    bool operator==(const Range&) const = default;
  };

  // Whether two attentions find their tokens' pages in the same tables.
  static bool same_tables(const paged::Pages& a, const paged::Pages& b) {
    return a.table == b.table && a.sequences == b.sequences && a.positions == b.positions &&
           a.sequences_count == b.sequences_count && a.table_width == b.table_width &&
           a.page == b.page;
  }

  // Where a link finds `count` numbers from x on; kept_width: the length of its rows if it may find
  // them in the residual stream. Returns false if an earlier link makes them, and they are neither
  // in the mail nor kept.
  bool find(const bfloat16* x, int64_t count, int kept_width, From& from) const {
    const Range own = {x, x + count};
    from = From::kMemory;
    if (std::none_of(made_.begin(), made_.end(),
                     [&](const Range& range) { return range.overlaps(own); }))
      return true;
    from = last_ == own ? From::kMail : From::kKept;
    return from == From::kMail || (kept_ == own && kept_width_ == kept_width);
  }
  // Whether a link that reads the last link's mail or not can follow: all but the first must, or
  // they would not keep up with the mail.
  bool use_mail(bool used) {
    if (links_.empty()) return true;
    if (!used) return false;
    links_.back().mails = true;
    mail_words_ = std::max<int64_t>(mail_words_, last_.end - last_.begin);
    return true;
  }
  void push(const Link& link, const bfloat16* result, int64_t count,
            std::function<void()> launch_alone) {
    if (links_.empty()) launch_alone_ = std::move(launch_alone);
    links_.push_back(link);
    last_ = {result, result + count};
    if (kept_.overlaps(last_)) kept_ = {};
    made_.push_back(last_);
  }

  CudaStream& cuda_;
  std::vector<Link> links_;
  std::function<void()> launch_alone_;
  int head_size_ = 0;
  Needs needs_;
  paged::Pages pages_ = {};
  int64_t mail_words_ = 0, unit_pairs_ = 0;
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

// Whether each block has outputs, without which it would not keep up with the mail, and a tile has
// few enough stages: barriers tell only one round of kSlots stages from the next.
bool occupies(const CudaStream& cuda, const few::Sizes& sizes) {
  constexpr int kMostOutputs = 1 << 22;  // times the number of blocks: 32 bits
  return sizes.outputs >= cuda.multiprocessors() && sizes.outputs <= kMostOutputs &&
         2 * few::stages_of_tile<chain::kStage>(sizes.k) <= chain::kSlots / 2;
}

}  // namespace

bool chain_product(CudaStream& cuda, const FewRows& call) {
  const bool takes = cuda.compute_capability() == 90 && call.rows <= kMostRows &&
                     call.k % 32 == 0 && few::row_bytes(call) <= kMostMemory &&
                     occupies(cuda, few::sizes_of(call));
  if (!takes) return false;
  if (!cuda.capturing()) {
    chain::load_kernels(cuda);
    return false;
  }
  return few::early(cuda, call) && add(cuda, call);
}

bool chain_attention(CudaStream& cuda, const paged::Call& call,
                     std::function<void()> launch_alone) {
  const bool takes = cuda.compute_capability() == 90 && cuda.capturing() &&
                     call.call.batch * call.call.time <= kMostRows &&
                     paged::lines_bytes(call.call) <= kMostMemory &&
                     chain::places_bytes(call.pages) <= kMostPlaces;
  return takes && add(cuda, call, launch_alone);
}

}  // namespace llamaforge::cuda

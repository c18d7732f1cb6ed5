#include "cuda/runtime/arena.h"

#include <algorithm>
#include <iterator>

namespace llamaforge::cuda {

namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPage = 2 * kMiB;  // page size of the GPU

// Small and medium blocks share segments; a large block gets a segment of its own size, rounded to
// pages.
enum Kind { kSmall, kMedium, kLarge };
constexpr size_t kSegment[] = {8 * kMiB, 64 * kMiB, 0};
constexpr size_t kLeast[] = {512, kMiB, 32 * kMiB};  // minimum bytes of each kind of block

Kind kind_of(size_t bytes) {
  return bytes < kLeast[kMedium] ? kSmall : bytes < kLeast[kLarge] ? kMedium : kLarge;
}

size_t segment_for(size_t bytes, Kind kind) {
  return kind == kLarge ? (bytes + kPage - 1) / kPage * kPage : kSegment[kind];
}

}  // namespace

Arena::~Arena() {
  for (const auto& [address, block] : blocks_) {
    if (block.starts_segment) give_(address);
  }
}

void* Arena::take(size_t bytes) {
  const Kind kind = kind_of(bytes);
  Free& free = free_[kind];
  auto fit = free.lower_bound({bytes, nullptr});
  if (fit == free.end()) {
    const size_t segment = segment_for(bytes, kind);
    auto* start = static_cast<char*>(take_(segment));
    if (!start) return nullptr;
    reserved_ += segment;
    blocks_.emplace(start, Block{segment, true, true, kind});
    fit = free.emplace(segment, start).first;
  }
  const auto block = blocks_.find(fit->second);
  free.erase(fit);
  block->second.free = false;
  // The rest becomes a block of its own, unless it is too small for its kind.
  const size_t rest = block->second.bytes - bytes;
  if (rest >= kLeast[kind]) {
    block->second.bytes = bytes;
    char* after = block->first + bytes;
    blocks_.emplace(after, Block{rest, true, false, kind});
    free.emplace(rest, after);
  }
  return block->first;
}

void Arena::mark_free(Blocks::iterator block) {
  block->second.free = true;
  free_[block->second.kind].emplace(block->second.bytes, block->first);
}

void Arena::give(void* address) {
  auto block = blocks_.find(static_cast<char*>(address));
  const auto after = std::next(block);
  if (after != blocks_.end() && after->second.free && !after->second.starts_segment) {
    free_[after->second.kind].erase({after->second.bytes, after->first});
    block->second.bytes += after->second.bytes;
    blocks_.erase(after);
  }
  if (!block->second.starts_segment) {
    const auto before = std::prev(block);
    if (before->second.free) {
      free_[before->second.kind].erase({before->second.bytes, before->first});
      before->second.bytes += block->second.bytes;
      blocks_.erase(block);
      block = before;
    }
  }
  mark_free(block);
}

std::vector<void*> Arena::take_unused() {
  std::vector<void*> segments;
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    const auto after = std::next(block);
    const bool whole =
        block->second.starts_segment && (after == blocks_.end() || after->second.starts_segment);
    if (whole && block->second.free) {
      segments.push_back(block->first);
      free_[block->second.kind].erase({block->second.bytes, block->first});
      reserved_ -= block->second.bytes;
      blocks_.erase(block);
    }
    block = after;
  }
  return segments;
}

}  // namespace llamaforge::cuda

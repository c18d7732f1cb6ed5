// Random use of the arena over host memory. Blocks never overlap, keep their content, join again,
// and are returned whole. Prints "ok" or the mistake.
#include "cuda/runtime/arena.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <vector>

using llamaforge::cuda::Arena;

namespace {

constexpr size_t kMiB = size_t{1} << 20;

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  std::exit(1);
}

void give_back_unused(Arena& arena, const std::function<void(void*)>& give) {
  for (void* segment : arena.take_unused()) give(segment);
}

struct Used {
  char* data;
  size_t bytes;
  char mark;
};

}  // namespace

int main() {
  size_t in_segments = 0, limit = SIZE_MAX;
  std::map<void*, size_t> segments;
  {
    const auto take = [&](size_t bytes) -> void* {
      if (in_segments + bytes > limit) return nullptr;
      void* segment = std::aligned_alloc(4096, bytes);
      segments[segment] = bytes;
      in_segments += bytes;
      return segment;
    };
    const auto give = [&](void* segment) {
      require(segments.count(segment) == 1, "a segment is given back that was not taken");
      in_segments -= segments[segment];
      segments.erase(segment);
      std::free(segment);
    };
    Arena arena(take, give);

    // A second step with the same tensors needs no new memory.
    std::vector<size_t> sizes = {512,       3 * kMiB, 100 * kMiB, 700 * 512,
                                 40 * kMiB, 2 * kMiB, 33 * kMiB,  512 * 3};
    size_t after_first = 0;
    for (int step = 0; step < 3; ++step) {
      std::vector<void*> blocks;
      for (size_t bytes : sizes) blocks.push_back(arena.take(bytes));
      for (void* block : blocks) arena.give(block);
      if (step == 0) after_first = arena.reserved();
      require(arena.reserved() == after_first, "equal steps need more and more memory");
    }
    give_back_unused(arena, give);
    require(arena.reserved() == 0 && segments.empty(), "an unused arena keeps segments");

    // Blocks that were freed in parts have joined into one.
    std::vector<void*> parts;
    for (int i = 0; i < 32; ++i) parts.push_back(arena.take(2 * kMiB));
    require(arena.reserved() == 64 * kMiB, "32 blocks of 2 MiB do not share a segment");
    for (int i = 0; i < 32; i += 2) arena.give(parts[static_cast<size_t>(i)]);
    for (int i = 1; i < 32; i += 2) arena.give(parts[static_cast<size_t>(i)]);
    void* halves[] = {arena.take(31 * kMiB), arena.take(31 * kMiB)};
    require(halves[0] && halves[1] && arena.reserved() == 64 * kMiB,
            "free neighbours do not become one block");
    limit = in_segments;
    require(arena.take(3 * kMiB) == nullptr && arena.take(512) == nullptr, "memory from nowhere");
    require(arena.reserved() == 64 * kMiB, "a refused segment is counted");
    limit = SIZE_MAX;
    for (void* half : halves) arena.give(half);

    std::mt19937 random(1);
    std::vector<Used> used;
    for (int i = 0; i < 60000; ++i) {
      if (used.empty() || random() % 100 < 52) {
        const size_t most = random() % 8 == 0 ? 6 * kMiB : 64 * 1024;
        const size_t bytes = (random() % most / 512 + 1) * 512;
        auto* data = static_cast<char*>(arena.take(bytes));
        require(data && reinterpret_cast<size_t>(data) % 512 == 0, "a block is not aligned");
        const char mark = static_cast<char>(random());
        data[0] = data[bytes - 1] = mark;
        used.push_back({data, bytes, mark});
      } else {
        const size_t at = random() % used.size();
        const Used block = used[at];
        require(block.data[0] == block.mark && block.data[block.bytes - 1] == block.mark,
                "blocks overlap");
        arena.give(block.data);
        used[at] = used.back();
        used.pop_back();
        if (i % 1000 == 0) give_back_unused(arena, give);
      }
      if (used.size() > 400) {
        for (const Used& block : used) arena.give(block.data);
        used.clear();
      }
    }
    std::map<char*, size_t> places;
    for (const Used& block : used) places[block.data] = block.bytes;
    for (auto place = places.begin(); place != places.end() && std::next(place) != places.end();
         ++place) {
      require(place->first + place->second <= std::next(place)->first, "blocks overlap");
    }
    for (const Used& block : used) arena.give(block.data);
    give_back_unused(arena, give);
    require(arena.reserved() == 0 && segments.empty(), "memory is lost");
    (void)arena.take(512);
  }
  require(segments.empty(), "the arena's end leaves segments behind");
  std::printf("ok\n");
}

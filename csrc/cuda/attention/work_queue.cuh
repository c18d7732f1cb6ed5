// A list of the query tiles of all heads, longest first, from which a block takes the next piece
// when it is done. So no block idles while another has more than one tile to do. The block that
// computes a piece varies from run to run, but the result of a piece does not.
#pragma once

#include "cuda/attention/attention_kernels.h"

namespace llamaforge::cuda {

// The list goes through sections of heads, so that the keys and values in use fit the L2 cache.
// Within a section it goes through the tiles from the last (the longest walk) to the first.
struct WorkQueue {
  int tiles, works,
      section;  // query tiles of a head; pieces in all; heads (of all sequences) in a section
  int* next;    // pieces taken after the first of each block; zero at the start

  WorkQueue(const AttentionCall& call, int rows, int* next) : next(next) {
    constexpr double kCache = 20 << 20;
    tiles = (call.time + rows - 1) / rows;
    works = tiles * call.batch * call.heads;
    const int lines = call.batch * call.kv_heads;
    const double bytes = 4.0 * lines * call.time * call.head_size;
    const int sections = static_cast<int>(bytes / kCache) + 1;
    section = (lines + sections - 1) / sections * call.group();
  }
};

struct Work {
  int query_tile, batch, head;
};
__device__ __forceinline__ Work work_at(int index, const WorkQueue& queue,
                                        const AttentionCall& call) {
  const int first = index / (queue.section * queue.tiles) * queue.section;
  const int heads = min(queue.section, call.batch * call.heads - first),
            place = index - first * queue.tiles;
  const int line = first + place % heads;
  return {queue.tiles - 1 - place / heads, line / call.heads, line % call.heads};
}

}  // namespace llamaforge::cuda

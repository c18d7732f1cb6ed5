// Causal attention in tiles (FlashAttention-2, Dao 2023, arXiv 2307.08691): no T x T matrix exists.
// o = softmax(scale · q kᵀ) v is computed tile by tile with a running maximum and sum, which are
// kept for the backward pass.
//
// Keys and values of a (batch, kv head) are packed once and read by all query heads of the group.
// Exponentials are in base 2, which saves one multiplication each. The maximum is subtracted before
// scores are scaled, because the rounded products of score and maximum with the scale would differ
// by whole units where scores are above 1e7. On the diagonal, only the needed part of each product
// is computed. Tiles of keys before the first query's first key are left out. A query tile is one
// task, so results are deterministic for any number of threads.
#include "cpu/attention_shared.h"
#include "cpu/cpu_ops.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

template <class Engine>
struct ForwardWorkspace {
  using Word = typename Engine::Word;
  alignas(64) float scores[kTile * kTile];
  alignas(64) Word probabilities[kTile * kTile / Engine::kPerWord];
  alignas(64) float maximum[kTile], rescale[kTile];  // running maximum of q·k
  alignas(64) Floats sum[kTile];                     // running sum, lane by lane

  void start() {
    for (float& m : maximum) m = -INFINITY;
    for (Floats& s : sum) s = Floats{};
  }
};

// Online softmax of one tile of scores. Probabilities are relative to the new running maximum, and
// `rescale` is the factor that the old output and sum must be multiplied by. The maximum of a query
// is -inf if all its scores so far are -inf or if it has seen no key yet (its first key lies in a
// later tile); the reference is then 0.
template <class Engine, Mask kMask>
void softmax_tile(ForwardWorkspace<Engine>& w, int64_t rows, float to_base_2,
                  const Visible& visible, int64_t tile) {
  const Floats nothing = broadcast(-INFINITY);
  const auto reference = [&](Floats maximum) { return maximum == nothing ? Floats{} : maximum; };
  for (int64_t first = 0; first < rows; first += kLanes) {
    Floats largest[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t row = first + i;
      largest[i] = broadcast(-INFINITY);
      for (int64_t v = 0; v < kVectorsPerRow; ++v) {
        Floats x = load(w.scores + row * kTile + v * kLanes);
        x = keep_visible<kMask>(x, visible, tile, v, row, -INFINITY);
        largest[i] = x > largest[i] ? x : largest[i];
      }
    }
    const Floats in_tile = reduce_rows(largest, [](Floats a, Floats b) { return a > b ? a : b; });
    const Floats before = load(w.maximum + first);
    const Floats now = before > in_tile ? before : in_tile;
    store(w.maximum + first, now);
    store(w.rescale + first,
          before == nothing ? Floats{} : exp2_below_one((before - reference(now)) * to_base_2));
  }
  for (int64_t row = 0; row < rows; ++row) {
    const Floats maximum = reference(broadcast(w.maximum[row]));
    Floats sum = w.sum[row] * w.rescale[row];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectorsPerRow; ++v) {
      Floats x = (load(w.scores + row * kTile + v * kLanes) - maximum) * to_base_2;
      x = keep_visible<kMask>(x, visible, tile, v, row, -INFINITY);
      const Floats p = exp2_below_one(x);
      sum += p;
      put_rows(w.probabilities, row, v, p);
    }
    w.sum[row] = sum;
  }
}

template <class Engine, class T>
void forward_tile(const Attention& shape, const PackedKeys<Engine>& keys, int64_t b, int64_t head,
                  int64_t query_tile, const T* qkv, T* o, float* statistics,
                  typename Engine::Word* query, float* output, ForwardWorkspace<Engine>& w) {
  constexpr int64_t kPerWord = Engine::kPerWord;
  const int64_t width = shape.width(), rows = shape.rows(query_tile);
  const float to_base_2 = shape.scale * kLog2E;
  pack_rows<Engine>(qkv + shape.at(b, query_tile, head), shape.stride(), rows, shape.head_size,
                    query);
  w.start();
  const Visible visible(shape, b, query_tile);
  const int64_t first_key_tile = (b * shape.kv_heads + head / shape.group()) * shape.tiles();
  for (int64_t tile = visible.first_tile; tile <= query_tile; ++tile) {
    const bool diagonal = tile == query_tile;
    const int64_t offset = (first_key_tile + tile) * keys.tile_words;
    const Part part = diagonal ? Part::lower_columns : Part::whole;
    multiply_tile<Engine>(rows, kTile, width, {query, width / kPerWord, 1},
                          keys.key_transposed + offset, kTile, w.scores, kTile, false, part);
    switch (visible.mask(tile)) {
      case Mask::none: softmax_tile<Engine, Mask::none>(w, rows, to_base_2, visible, tile); break;
      case Mask::diagonal:
        softmax_tile<Engine, Mask::diagonal>(w, rows, to_base_2, visible, tile);
        break;
      case Mask::first_key:
        softmax_tile<Engine, Mask::first_key>(w, rows, to_base_2, visible, tile);
        break;
    }
    const bool first = tile == visible.first_tile;
    if (!first) {
      for (int64_t row = 0; row < rows; ++row) {
        const Floats factor = broadcast(w.rescale[row]);
        for (int64_t d = 0; d < width; d += kLanes) {
          store(output + row * width + d, load(output + row * width + d) * factor);
        }
      }
    }
    multiply_tile<Engine>(rows, width, kTile, {w.probabilities, kTile / kPerWord, 1},
                          keys.value_paired + offset, width, output, width, !first,
                          diagonal ? Part::lower_steps : Part::whole);
  }
  float sums[kTile];
  for (int64_t row = 0; row < rows; ++row) {
    sums[row] = horizontal_sum(w.sum[row]);
    float* place = statistics + shape.row(b, head, query_tile) + row;
    place[0] = w.maximum[row];
    place[shape.all_rows()] = std::log(sums[row]);
  }
  write_scaled(
      output, width, rows, shape.head_size, [&](int64_t row) { return 1.0f / sums[row]; },
      o + shape.at_output(b, query_tile, head), shape.heads * shape.head_size);
}

template <class Engine, class T>
void forward(Stream& stream, const Attention& shape, const T* qkv, T* o, float* statistics) {
  using Word = typename Engine::Word;
  const int64_t width = shape.width(), tile_words = kTile * width / Engine::kPerWord;
  const int64_t key_words = shape.batch * shape.kv_heads * shape.tiles() * tile_words;
  const Scratch packed(stream, static_cast<size_t>(2 * key_words) * sizeof(Word));
  const PackedKeys<Engine> keys = {packed.as<Word>(), nullptr, nullptr,
                                   packed.as<Word>() + key_words, tile_words};
  pack_keys(stream, shape, qkv, keys);

  using Workspace = ForwardWorkspace<Engine>;
  const ThreadScratch scratch(
      stream, sizeof(Workspace) +
                  ThreadScratch::padded(static_cast<size_t>(tile_words) * sizeof(Word)) +
                  static_cast<size_t>(kTile * width) * sizeof(float));
#pragma omp parallel
  {
    ThreadScratch::Parts parts(scratch);
    auto* workspace = new (parts.take<Workspace>(1)) Workspace();
    Word* query = parts.take<Word>(tile_words);
    float* output = parts.take<float>(kTile * width);
#pragma omp for collapse(3) schedule(dynamic)
    // The longest rows come first, so that threads end together.
    for (int64_t late = 0; late < shape.tiles(); ++late) {
      for (int64_t b = 0; b < shape.batch; ++b) {
        for (int64_t head = 0; head < shape.heads; ++head) {
          forward_tile<Engine>(shape, keys, b, head, shape.tiles() - 1 - late, qkv, o, statistics,
                               query, output, *workspace);
        }
      }
    }
  }
}

}  // namespace

void attention_forward(Stream& stream, In qkv, std::optional<In> first_key, Out o, Out statistics,
                       int64_t heads, int64_t kv_heads, double scale) {
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_forward(size, qkv, o, statistics);
  Attention shape = attention_of(size, scale);
  shape.first_key = checked_first_key(first_key, size.batch, size.time);
  if (qkv.numel() == 0) return;
  if (qkv.dtype == DType::bf16) {
    forward<BFloat16Engine>(stream, shape, qkv.data<bfloat16>(), o.data<bfloat16>(),
                            statistics.data<float>());
  } else {
    forward<FloatEngine>(stream, shape, qkv.data<float>(), o.data<float>(),
                         statistics.data<float>());
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

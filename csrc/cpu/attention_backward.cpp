// Gradient of causal attention (FlashAttention-2, Dao 2023, arXiv 2307.08691). Probabilities are
// recomputed from q, k and the statistics of the forward pass. With D = rowsum(dO ∘ o):
//   p = exp(scale · (s - maximum) - log sum)
//   dS = p ∘ (dO vᵀ - D),  dq = scale · dS k,  dk = scale · dSᵀ q,  dv = pᵀ dO
// dk and dv are summed over the heads of a group.
//
// Results are deterministic for any number of threads. The (head, query tile) pairs of a kv head
// are cut into parts, and the number of parts depends on shapes alone. Each part sums its own dk
// and dv in f32, and the parts are added in order.
#include <vector>

#include "cpu/attention_shared.h"
#include "cpu/cpu_ops.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

constexpr int64_t kTasksWanted = 32;

template <class Engine>
struct BackwardWorkspace {
  using Word = typename Engine::Word;
  static constexpr int64_t kWords = kTile * kTile / Engine::kPerWord;
  alignas(64) float scores[kTile * kTile], d_probabilities[kTile * kTile];
  alignas(64) Word probabilities_paired[kWords], d_scores[kWords], d_scores_paired[kWords];
  // Maximum of q·k; log_sum in base 2; row_sum = rowsum(dO ∘ o).
  alignas(64) float maximum[kTile], log_sum[kTile], row_sum[kTile];
};

// p and dS of one tile, in the layouts of the three products that follow.
template <class Engine, Mask kMask>
void softmax_gradient_tile(BackwardWorkspace<Engine>& w, int64_t rows, float to_base_2,
                           const Visible& visible, int64_t tile) {
  for (int64_t row = 0; row < rows; row += 2) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectorsPerRow; ++v) {
      Floats p[2], d_score[2];
#pragma GCC unroll 2
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t place = (row + i) * kTile + v * kLanes;
        Floats x = (load(w.scores + place) - w.maximum[row + i]) * to_base_2 - w.log_sum[row + i];
        x = keep_visible<kMask>(x, visible, tile, v, row + i, -INFINITY);
        p[i] = exp2_below_one(x);
        d_score[i] = p[i] * (load(w.d_probabilities + place) - w.row_sum[row + i]);
        d_score[i] = keep_visible<kMask>(d_score[i], visible, tile, v, row + i, 0.0f);
        if (Engine::kPerWord > 1) put_rows(w.d_scores, row + i, v, d_score[i]);
      }
      put_paired(w.probabilities_paired, row, v, p[0], p[1]);
      put_paired(w.d_scores_paired, row, v, d_score[0], d_score[1]);
    }
  }
}

// Buffers of one thread for the query side of a tile.
template <class Engine>
struct QuerySide {
  using Word = typename Engine::Word;
  Word *query, *query_paired, *d_output, *d_output_paired;
  float* d_query;

  QuerySide(ThreadScratch::Parts& parts, int64_t width)
      : query(parts.take<Word>(words(width))),
        query_paired(parts.take<Word>(words(width))),
        d_output(parts.take<Word>(words(width))),
        d_output_paired(parts.take<Word>(words(width))),
        d_query(parts.take<float>(kTile * width)) {}

  static size_t bytes(int64_t width) {
    return 4 * ThreadScratch::padded(static_cast<size_t>(words(width)) * sizeof(Word)) +
           static_cast<size_t>(kTile * width) * sizeof(float);
  }

 private:
  static int64_t words(int64_t width) { return kTile * width / Engine::kPerWord; }
};

template <class T>
float dot(const T* x, const T* y, int64_t count) {
  Floats sum = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load(x + i) * load(y + i);
  if (i < count) sum += load_partial(x + i, count - i) * load_partial(y + i, count - i);
  return horizontal_sum(sum);
}

template <class T>
struct BackwardTensors {
  const T *d_o, *qkv, *o;
  const float* statistics;
  T* dqkv;
};

// Computes one (head, query tile) pair against all key tiles that it sees: writes the pair's dq,
// and adds to dk and dv (time, width) of the pair's part.
template <class Engine, class T>
void backward_tile(const Attention& shape, const PackedKeys<Engine>& keys, int64_t b, int64_t head,
                   int64_t query_tile, const BackwardTensors<T>& x, float* dk, float* dv,
                   QuerySide<Engine>& side, BackwardWorkspace<Engine>& w) {
  constexpr int64_t kPerWord = Engine::kPerWord;
  const int64_t width = shape.width(), rows = shape.rows(query_tile), even_rows = round_up(rows, 2);
  const float to_base_2 = shape.scale * kLog2E;
  const int64_t place = shape.at_output(b, query_tile, head),
                o_stride = shape.heads * shape.head_size;
  pack_rows<Engine>(x.qkv + shape.at(b, query_tile, head), shape.stride(), rows, shape.head_size,
                    side.query);
  pack_rows<Engine>(x.d_o + place, o_stride, rows, shape.head_size, side.d_output);
  pair_rows<Engine>(side.query, side.query_paired, width);
  pair_rows<Engine>(side.d_output, side.d_output_paired, width);
  for (int64_t row = 0; row < kTile; ++row) {  // rows beyond the end get probability 0
    const bool inside = row < rows;
    const float* statistics = x.statistics + shape.row(b, head, query_tile) + row;
    w.maximum[row] = inside ? statistics[0] : INFINITY;
    w.log_sum[row] = inside ? statistics[shape.all_rows()] * kLog2E : 0.0f;
    w.row_sum[row] =
        inside ? dot(x.d_o + place + row * o_stride, x.o + place + row * o_stride, shape.head_size)
               : 0.0f;
  }

  const Visible visible(shape, b, query_tile);
  const int64_t first_key_tile = (b * shape.kv_heads + head / shape.group()) * shape.tiles();
  for (int64_t tile = visible.first_tile; tile <= query_tile; ++tile) {
    const bool diagonal = tile == query_tile;
    const int64_t offset = (first_key_tile + tile) * keys.tile_words;
    const Part columns = diagonal ? Part::lower_columns : Part::whole;
    const Part from_row = diagonal ? Part::upper_steps : Part::whole;
    multiply_tile<Engine>(even_rows, kTile, width, {side.query, width / kPerWord, 1},
                          keys.key_transposed + offset, kTile, w.scores, kTile, false, columns);
    multiply_tile<Engine>(even_rows, kTile, width, {side.d_output, width / kPerWord, 1},
                          keys.value_transposed + offset, kTile, w.d_probabilities, kTile, false,
                          columns);
    switch (visible.mask(tile)) {
      case Mask::none:
        softmax_gradient_tile<Engine, Mask::none>(w, even_rows, to_base_2, visible, tile);
        break;
      case Mask::diagonal:
        softmax_gradient_tile<Engine, Mask::diagonal>(w, even_rows, to_base_2, visible, tile);
        break;
      case Mask::first_key:
        softmax_gradient_tile<Engine, Mask::first_key>(w, even_rows, to_base_2, visible, tile);
        break;
    }
    const int64_t seen = diagonal ? rows : kTile;  // keys
    multiply_tile<Engine>(seen, width, rows, {w.probabilities_paired, 1, kTile},
                          side.d_output_paired, width, dv + tile * kTile * width, width, true,
                          from_row);
    multiply_tile<Engine>(seen, width, rows, {w.d_scores_paired, 1, kTile}, side.query_paired,
                          width, dk + tile * kTile * width, width, true, from_row);
    const auto* d_scores = kPerWord > 1 ? w.d_scores : w.d_scores_paired;
    multiply_tile<Engine>(rows, width, kTile, {d_scores, kTile / kPerWord, 1},
                          keys.key_paired + offset, width, side.d_query, width,
                          tile > visible.first_tile, diagonal ? Part::lower_steps : Part::whole);
  }
  write_scaled(
      side.d_query, width, rows, shape.head_size, [&](int64_t) { return shape.scale; },
      x.dqkv + shape.at(b, query_tile, head), shape.stride());
}

// Cuts the (head, query tile) pairs of a kv head into `parts` runs of about equal work. Pair u is
// head u / tiles, tile u % tiles, and costs tile + 1. First keys make some pairs cheaper, but the
// cut must depend on shapes alone. Returns the first pair of each run, and the end.
std::vector<int64_t> cut_into_parts(const Attention& shape, int64_t parts) {
  const int64_t tiles = shape.tiles(), pairs = shape.group() * tiles;
  const int64_t work = shape.group() * tiles * (tiles + 1) / 2;
  std::vector<int64_t> first = {0};
  int64_t done = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    done += pair % tiles + 1;
    const int64_t runs = static_cast<int64_t>(first.size());
    if (runs < parts && done * parts >= runs * work) first.push_back(pair + 1);
  }
  first.push_back(pairs);
  return first;
}

template <class Engine, class T>
void backward(Stream& stream, const Attention& shape, const BackwardTensors<T>& x) {
  using Word = typename Engine::Word;
  const int64_t width = shape.width(), tile_words = kTile * width / Engine::kPerWord;
  const int64_t kv_count = shape.batch * shape.kv_heads,
                key_words = kv_count * shape.tiles() * tile_words;
  const Scratch packed(stream, static_cast<size_t>(3 * key_words) * sizeof(Word));
  Word* words = packed.as<Word>();
  const PackedKeys<Engine> keys = {words, words + key_words, words + 2 * key_words, nullptr,
                                   tile_words};
  pack_keys(stream, shape, x.qkv, keys);

  const int64_t pairs = shape.group() * shape.tiles();
  const int64_t wanted = std::clamp<int64_t>((kTasksWanted + kv_count - 1) / kv_count, 1, pairs);
  const std::vector<int64_t> first_pair = cut_into_parts(shape, wanted);
  const int64_t parts = static_cast<int64_t>(first_pair.size()) - 1;
  const int64_t part_size = shape.tiles() * kTile * width;  // of dk; dv follows
  const Scratch partial(stream,
                        static_cast<size_t>(kv_count * parts * 2 * part_size) * sizeof(float));
  float* sums = partial.as<float>();

  using Workspace = BackwardWorkspace<Engine>;
  const ThreadScratch scratch(stream, sizeof(Workspace) + QuerySide<Engine>::bytes(width));
#pragma omp parallel
  {
    ThreadScratch::Parts own(scratch);
    auto* workspace = new (own.take<Workspace>(1)) Workspace();
    QuerySide<Engine> side(own, width);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t kv = 0; kv < kv_count; ++kv) {
      for (int64_t part = 0; part < parts; ++part) {
        float* dk = sums + (kv * parts + part) * 2 * part_size;
        std::memset(dk, 0, static_cast<size_t>(2 * part_size) * sizeof(float));
        for (int64_t pair = first_pair[part]; pair < first_pair[part + 1]; ++pair) {
          const int64_t head = kv % shape.kv_heads * shape.group() + pair / shape.tiles();
          const int64_t batch = kv / shape.kv_heads, tile = pair % shape.tiles();
          backward_tile<Engine>(shape, keys, batch, head, tile, x, dk, dk + part_size, side,
                                *workspace);
        }
      }
    }
#pragma omp for collapse(2) schedule(static)
    for (int64_t kv = 0; kv < kv_count; ++kv) {
      for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
        for (int64_t which = 0; which < 2; ++which) {  // dk, dv
          float* total = sums + (kv * parts * 2 + which) * part_size + tile * kTile * width;
          for (int64_t part = 1; part < parts; ++part) {
            const float* more = total + part * 2 * part_size;
            for (int64_t i = 0; i < kTile * width; i += kLanes)
              store(total + i, load(total + i) + load(more + i));
          }
          const int64_t head = shape.heads + which * shape.kv_heads + kv % shape.kv_heads;
          const float factor = which == 0 ? shape.scale : 1.0f;
          write_scaled(
              total, width, shape.rows(tile), shape.head_size, [&](int64_t) { return factor; },
              x.dqkv + shape.at(kv / shape.kv_heads, tile, head), shape.stride());
        }
      }
    }
  }
}

}  // namespace

void attention_backward(Stream& stream, In d_o, In qkv, In o, In statistics,
                        std::optional<In> first_key, Out dqkv, int64_t heads, int64_t kv_heads,
                        double scale) {
  const AttentionSize size = check_qkv(qkv, heads, kv_heads, scale);
  check_attention_backward(size, d_o, qkv, o, statistics, dqkv);
  Attention shape = attention_of(size, scale);
  shape.first_key = checked_first_key(first_key, size.batch, size.time);
  if (qkv.numel() == 0) return;
  if (qkv.dtype == DType::bf16) {
    backward<BFloat16Engine>(
        stream, shape,
        BackwardTensors<bfloat16>{d_o.data<bfloat16>(), qkv.data<bfloat16>(), o.data<bfloat16>(),
                                  statistics.data<float>(), dqkv.data<bfloat16>()});
  } else {
    backward<FloatEngine>(
        stream, shape,
        BackwardTensors<float>{d_o.data<float>(), qkv.data<float>(), o.data<float>(),
                               statistics.data<float>(), dqkv.data<float>()});
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

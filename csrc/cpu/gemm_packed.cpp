// Matrix products in f32 arithmetic, of f32 or bf16 operands (Goto & van de Geijn 2008):
//
//   b is packed into panels as wide as a register block, kDepth of its steps at a time; rows of a
//   are multiplied with those panels. Rows of f32 are read where they are stored; others are packed
//   too, which widens bf16 and turns transposed operands, so neither exists as a whole in f32. A
//   task with many rows packs b for itself. Where the team's tasks would have too few rows, the
//   team packs b together before. A product's next operands are fetched into the cache during the
//   product before.
//
// A product of few rows with a transposed b (a generated token) reads b where it is stored, as dot
// products, unless its rows must be independent of their number.
//
// No sum is divided between threads, and all threads add the same blocks of k in the same order, so
// tasks may be cut as it suits the team.
#include "cpu/gemm_packed.h"

#include <algorithm>

#include "cpu/gemm_pack.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

constexpr int64_t kTaskRows =
    16 * kBlockRows;  // of a: kDepth columns of them stay in the second-level cache
constexpr int64_t kTaskPanels = 512 / kPanel;       // bounds a task's tile of c
constexpr int64_t kMostRows = 1024;                 // of a task that packs for itself
constexpr int64_t kMostTurnedRows = 4 * kTaskRows;  // of one whose a is stored transposed
constexpr bool kTurnedPrivately =
    kLanes < 16;  // measured on Zen 4: 8% faster with AVX2, 5% slower with AVX-512
constexpr int64_t kFewestRows = 128;             // fewer are not worth packing b once more
constexpr int64_t kPackedFloats = 1 << 20;       // of b at a time: 4 MB
constexpr int64_t kFewestPanels = 128 / kPanel;  // at a time; fewer would pack a too often
constexpr int64_t kPage = 4096;  // bytes; addresses this far apart share a place of the cache
constexpr int64_t kRowsOfDotProducts = 8;
constexpr int64_t kSerialProducts = 1
                                    << 17;  // multiply-adds that one thread does faster than a team

template <class In, class Out>
class Product {
 public:
  Product(Stream& stream, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
          void* c, bool accumulate)
      : shape_(shape),
        a_(a),
        b_(b),
        c_(static_cast<Out*>(c)),
        accumulate_(accumulate),
        stream_(stream),
        threads_(omp_get_max_threads()),
        panels_(divide_up(shape.n, kPanel)) {
    if (shape.batch * shape.m * shape.n * shape.k <= kSerialProducts) threads_ = 1;
    // Sums that stay in c between rounds must be f32; of others all of k is packed at once.
    const int64_t columns = std::min<int64_t>(panels_ * kPanel, 1024);
    steps_ = shape.k;
    if (std::is_same_v<Out, float>) {
      steps_ = std::min(shape.k, std::max(kDepth, kPackedFloats / columns / kDepth * kDepth));
    }
    round_panels_ = std::min(panels_, std::max(kFewestPanels, kPackedFloats / (steps_ * kPanel)));
    const int64_t entries =
        b.shared ? shape.batch : std::max<int64_t>(1, kPackedFloats / (panels_ * kPanel * steps_));
    round_entries_ = std::min(shape.batch, entries);
  }

  void run() {
    if (cut_private_tasks()) return run_privately();
    const int64_t packed_entries = b_.shared ? 1 : round_entries_;
    const Scratch packed(
        stream_,
        static_cast<size_t>(packed_entries * round_panels_ * kPanel * steps_) * sizeof(float));
    cut_tasks();
    tile_stride_ = task_panels_ * kPanel;
    const int64_t own = task_rows_ / kBlockRows * kRowsBlock + task_rows_ * tile_stride_;
    const Scratch buffers(stream_, static_cast<size_t>(threads_ * own) * sizeof(float));
    packed_ = packed.as<float>();
    for (int64_t entry = 0; entry < shape_.batch; entry += round_entries_) {
      for (int64_t panel = 0; panel < panels_; panel += round_panels_) {
        for (int64_t step = 0; step < shape_.k; step += steps_) {
          const Round round = {entry, std::min(round_entries_, shape_.batch - entry),
                               panel, std::min(round_panels_, panels_ - panel),
                               step,  std::min(steps_, shape_.k - step)};
          work(round, buffers.as<float>(), own);
        }
      }
    }
  }

 private:
  // Part of the product whose part of b is packed at once.
  struct Round {
    int64_t first_entry, entries, first_panel, panels, first_step, steps;
  };

  // Where tasks have rows enough, each packs both operands for itself, kDepth steps at a time: the
  // team does not wait for a packed b, and nothing goes from core to core. Returns whether that is
  // worth it, and cuts the tasks.
  bool cut_private_tasks() {
    if (!std::is_same_v<Out, float> || shape_.n % kPanel != 0 ||
        (a_.transposed && !kTurnedPrivately))
      return false;
    column_tasks_ = divide_up(panels_, kTaskPanels);
    row_tasks_ = divide_up(shape_.m, a_.transposed ? kMostTurnedRows : kMostRows);
    const int64_t others = shape_.batch * column_tasks_;
    if (others % threads_ != 0) row_tasks_ = round_up(row_tasks_, threads_);
    return row_tasks_ == 1 || shape_.m / row_tasks_ >= kFewestRows;
  }

  void run_privately() {
    const int64_t columns = column_tasks_, rows = row_tasks_;
    const int64_t own =
        kTaskRows / kBlockRows * kRowsBlock + std::min(panels_, kTaskPanels) * kPanel * kDepth;
    const Scratch buffers(stream_, static_cast<size_t>(threads_ * own) * sizeof(float));
    const auto multiply = [&](int64_t i, int64_t thread) {
      const int64_t row_task = i / columns % rows, column = i % columns;
      multiply_privately(i / columns / rows, first_row(row_task), first_row(row_task + 1),
                         panels_ * column / columns, panels_ * (column + 1) / columns,
                         buffers.as<float>() + thread * own);
    };
    const int64_t tasks = shape_.batch * rows * columns;
    if (threads_ == 1) {
      for (int64_t i = 0; i < tasks; ++i) multiply(i, 0);
      return;
    }
    // Each thread takes those rows that loops over rows give it: they may still be in its cache.
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tasks; ++i) multiply(i, omp_get_thread_num());
  }

  void multiply_privately(int64_t entry, int64_t first_row, int64_t last_row, int64_t first_panel,
                          int64_t last_panel, float* buffer) const {
    float* rows_of_a = buffer;
    float* panels = buffer + kTaskRows / kBlockRows * kRowsBlock;
    const int64_t first_column = first_panel * kPanel, width = (last_panel - first_panel) * kPanel;
    for (int64_t step = 0; step < shape_.k; step += kDepth) {
      const int64_t steps = std::min(kDepth, shape_.k - step);
      pack_panels(entry, first_panel, last_panel, step, steps, panels);
      for (int64_t row = first_row; row < last_row; row += kTaskRows) {
        const int64_t rows = std::min(kTaskRows, last_row - row);
        const LeftRows left = rows_for_products(entry, row, rows, step, steps, rows_of_a);
        const bool last = row + kTaskRows >= last_row;
        const int64_t next_row = last ? first_row : row + kTaskRows,
                      next_step = last ? step + steps : step;
        const FetchAhead ahead =
            fetch_rows(entry, next_row, std::min(kTaskRows, last_row - next_row), next_step,
                       std::min(kDepth, shape_.k - next_step));
        float* c =
            reinterpret_cast<float*>(c_) + (entry * shape_.m + row) * shape_.n + first_column;
        multiply_rows(left, rows, panels, kPanel * steps, steps, c, shape_.n, width,
                      accumulate_ || step > 0, ahead);
      }
    }
  }

  // Enough tasks for a balanced team, as large as that allows: each packs its rows of a for itself.
  void cut_tasks() {
    task_rows_ = std::min(kTaskRows, round_up(shape_.m, kBlockRows));
    task_panels_ = std::min(kTaskPanels, round_panels_);
    const auto tasks = [&] {
      return round_entries_ * divide_up(shape_.m, task_rows_) *
             divide_up(round_panels_, task_panels_);
    };
    while (tasks() < 3 * threads_ && task_panels_ > kFewestPanels)
      task_panels_ = divide_up(task_panels_, 2);
    while (tasks() < 3 * threads_ && task_rows_ > 4 * kBlockRows)
      task_rows_ = round_up(task_rows_ / 2, kBlockRows);
    while (tasks() < threads_ && task_panels_ > 1) task_panels_ = divide_up(task_panels_, 2);
    row_tasks_ = divide_up(shape_.m, task_rows_);
    // Equal shares of the rows: the last tasks of the team end together.
    if (row_tasks_ > threads_) row_tasks_ = round_up(row_tasks_, threads_);
    task_rows_ = divide_up(divide_up(shape_.m, kBlockRows), row_tasks_) * kBlockRows;
  }

  // Where the rows of a task begin.
  int64_t first_row(int64_t task) const {
    return std::min(shape_.m, divide_up(shape_.m, kBlockRows) * task / row_tasks_ * kBlockRows);
  }

  void work(const Round& round, float* buffers, int64_t own) const {
    const int64_t depths = divide_up(round.steps, kDepth);
    const int64_t packings = (b_.shared ? 1 : round.entries) * round.panels * depths;
    const int64_t columns = divide_up(round.panels, task_panels_), rows = row_tasks_;
    const int64_t tasks = round.entries * rows * columns;
    const auto pack = [&](int64_t i) {
      pack_panel(round, i / depths / round.panels, i / depths % round.panels, i % depths);
    };
    const auto multiply = [&](int64_t i, int64_t thread) {
      multiply_task(round, i / columns / rows, i / columns % rows, i % columns * task_panels_,
                    buffers + thread * own);
    };
    if (threads_ == 1) {
      for (int64_t i = 0; i < packings; ++i) pack(i);
      for (int64_t i = 0; i < tasks; ++i) multiply(i, 0);
      return;
    }
#pragma omp parallel
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < packings; ++i) pack(i);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < tasks; ++i) multiply(i, omp_get_thread_num());
    }
  }

  float* packed_panel(const Round& round, int64_t entry, int64_t panel) const {
    return packed_ + ((b_.shared ? 0 : entry) * round.panels + panel) * kPanel * round.steps;
  }

  void pack_panel(const Round& round, int64_t entry, int64_t panel, int64_t depth) const {
    const int64_t from = depth * kDepth, steps = std::min(kDepth, round.steps - from);
    const int64_t first = round.first_panel + panel;
    pack_panels(round.first_entry + entry, first, first + 1, round.first_step + from, steps,
                packed_panel(round, entry, panel) + from * kPanel);
  }

  // Panels of b over some steps; in `out` they lie kPanel * steps apart.
  void pack_panels(int64_t entry, int64_t first, int64_t last, int64_t step, int64_t steps,
                   float* out) const {
    constexpr int64_t kAtOnce = 4;  // panels, so that stored rows are read in longer pieces
    const In* data =
        static_cast<const In*>(b_.data) + (b_.shared ? 0 : entry * shape_.k * shape_.n);
    const int64_t whole = shape_.n / kPanel;
    for (int64_t panel = first; panel < last;) {
      const int64_t column = panel * kPanel, width = std::min(kPanel, shape_.n - column);
      float* to = out + (panel - first) * kPanel * steps;
      if (width < kPanel) std::memset(to, 0, static_cast<size_t>(steps * kPanel) * sizeof(float));
      if (b_.transposed) {
        copy_turned(Stored<In>{data, shape_.k}.at(column, step), width, steps, to, kPanel);
        ++panel;
      } else if (width < kPanel) {
        copy_rows(Stored<In>{data, shape_.n}.at(step, column), steps, width, to, kPanel);
        ++panel;
      } else {
        const int64_t panels = std::min({kAtOnce, last - panel, whole - panel});
        copy_panels(Stored<In>{data, shape_.n}.at(step, column), steps, panels, to);
        panel += panels;
      }
    }
  }

  // Whether products take rows of a where they are stored. Rows a multiple of a page apart would
  // share few places of the cache.
  bool reads_rows_in_place() const {
    return std::is_same_v<In, float> && !a_.transposed && shape_.k * sizeof(float) % kPage != 0;
  }

  // The part of a that holds these rows and steps; its rows are steps where a is stored transposed.
  Stored<In> stored_a(int64_t entry, int64_t row, int64_t step) const {
    const In* data =
        static_cast<const In*>(a_.data) + (a_.shared ? 0 : entry * shape_.m * shape_.k);
    return a_.transposed ? Stored<In>{data, shape_.m}.at(step, row)
                         : Stored<In>{data, shape_.k}.at(row, step);
  }

  // Rows of a as products take them; blocks of kBlockRows lie block_stride apart.
  struct LeftRows {
    const float* data;
    int64_t row_stride, step_stride, block_stride;
  };

  // Where they are stored, or packed: as they are, each kDepth long, or step by step where a is
  // stored transposed.
  LeftRows rows_for_products(int64_t entry, int64_t row, int64_t rows, int64_t step, int64_t steps,
                             float* packed) const {
    const Stored<In> from = stored_a(entry, row, step);
    if constexpr (std::is_same_v<In, float>) {
      if (reads_rows_in_place()) return {from.data, shape_.k, 1, kBlockRows * shape_.k};
    }
    if (a_.transposed) {
      copy_steps(from, steps, rows, packed);
      return {packed, 1, kBlockRows, kRowsBlock};
    }
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      copy_rows(from.at(r, 0), std::min<int64_t>(kBlockRows, rows - r), steps,
                packed + r / kBlockRows * kRowsBlock, kDepth);
    }
    return {packed, kDepth, 1, kRowsBlock};
  }

  // Of rows that will be packed. Steps a multiple of a page apart would push each other out of the
  // cache.
  FetchAhead fetch_rows(int64_t entry, int64_t row, int64_t rows, int64_t step,
                        int64_t steps) const {
    const Stored<In> from = stored_a(entry, row, step);
    if (reads_rows_in_place() || steps <= 0) return {from, 0, 0};
    if (!a_.transposed) return {from, rows, steps};
    return {from, shape_.m * sizeof(In) % kPage == 0 ? 0 : steps, rows};
  }

  // c (rows, width) = or += rows of a · panels of b, over at most kDepth steps; meanwhile `ahead`
  // is fetched.
  static void multiply_rows(const LeftRows& left, int64_t rows, const float* panels,
                            int64_t panel_stride, int64_t steps, float* c, int64_t c_stride,
                            int64_t width, bool add, FetchAhead ahead) {
    static constexpr auto products =
        block_products<FloatEngine, true>(std::make_index_sequence<kBlockRows * kBlockVectors>{});
    const int64_t blocks = divide_up(rows, kBlockRows),
                  lines = divide_up(ahead.lines(), divide_up(width, kPanel) * blocks);
    for (int64_t column = 0; column < width; column += kPanel) {
      const float *b = panels + column / kPanel * panel_stride, *next_b = b + panel_stride;
      const int64_t vectors = std::min<int64_t>(kBlockVectors, divide_up(width - column, kLanes));
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = block * kBlockRows, tall = std::min<int64_t>(kBlockRows, rows - row);
        const float* a = left.data + block * left.block_stride;
        ahead.some(lines);
        // A panel takes about 16 products, each of which fetches its share of the next one.
        const NextOperands<float> next = {block + 1 < blocks ? a + left.block_stride : left.data,
                                          next_b + block * kPanel * steps / 16};
        products[(tall - 1) * kBlockVectors + vectors - 1](
            a, left.row_stride, left.step_stride, b, kPanel, steps, c + row * c_stride + column,
            c_stride, add, next);
      }
    }
  }

  // The rows of a task in a batch entry, panels from `panel` of the round on.
  void multiply_task(const Round& round, int64_t entry, int64_t row_task, int64_t panel,
                     float* buffer) const {
    const int64_t row = first_row(row_task), rows = first_row(row_task + 1) - row;
    const int64_t panels = std::min(task_panels_, round.panels - panel);
    const int64_t column = (round.first_panel + panel) * kPanel,
                  width = std::min(panels * kPanel, shape_.n - column);
    Out* c = c_ + ((round.first_entry + entry) * shape_.m + row) * shape_.n + column;
    float* rows_of_a = buffer;
    float* tile = buffer + task_rows_ / kBlockRows * kRowsBlock;
    const bool add = accumulate_ || round.first_step > 0;
    // Whole panels of f32 are summed where they belong.
    int64_t stride = tile_stride_;
    const bool in_place = std::is_same_v<Out, float> && width == panels * kPanel;
    if (in_place) {
      tile = reinterpret_cast<float*>(c);
      stride = shape_.n;
    } else if (add) {
      copy_rows(Stored<Out>{c, shape_.n}, rows, width, tile, stride);
    }
    for (int64_t depth = 0; depth < round.steps; depth += kDepth) {
      const int64_t steps = std::min(kDepth, round.steps - depth);
      const int64_t step = round.first_step + depth,
                    next_steps = std::min(kDepth, round.steps - depth - steps);
      const LeftRows left =
          rows_for_products(round.first_entry + entry, row, rows, step, steps, rows_of_a);
      multiply_rows(left, rows, packed_panel(round, entry, panel) + depth * kPanel,
                    kPanel * round.steps, steps, tile, stride, width, add || depth > 0,
                    fetch_rows(round.first_entry + entry, row, rows, step + steps, next_steps));
    }
    if (in_place) return;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = tile + r * stride;
      Out* to = c + r * shape_.n;
      for_each_vector(0, width, [&](int64_t j, auto v) { v.store(to + j, v.load(from + j)); });
    }
  }

  GemmShape shape_;
  GemmOperand a_, b_;
  Out* c_;
  bool accumulate_;
  Stream& stream_;
  int64_t threads_, panels_;                      // panels of all of n
  int64_t steps_, round_panels_, round_entries_;  // of a round, at most
  int64_t task_rows_ = 0, row_tasks_ = 0, column_tasks_ = 0, task_panels_ = 0,
          tile_stride_ = 0;  // rows of a task: at most
  float* packed_ = nullptr;  // (entry, panel, step, kPanel)
};

// Each row of a with kLanes rows of the stored b at a time.
template <class In, class Out>
void multiply_by_dot_products(const GemmShape& shape, const In* a, const In* b, Out* c,
                              bool accumulate) {
  const int64_t k = shape.k, blocks = divide_up(shape.n, kLanes);
  parallel_for(blocks, shape.m * k * kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t column = block * kLanes, width = std::min<int64_t>(kLanes, shape.n - column);
      for (int64_t row = 0; row < shape.m; ++row) {
        const In* x = a + row * k;
        Floats sums[kLanes] = {};
        for_each_vector(0, k, [&](int64_t i, auto v) {
          const Floats from_a = v.load(x + i);
#pragma GCC unroll 16
          for (int lane = 0; lane < kLanes; ++lane) {
            const int64_t other = column + std::min<int64_t>(lane, width - 1);
            sums[lane] = fused(from_a, v.load(b + other * k + i), sums[lane]);
          }
        });
        Out* out = c + row * shape.n + column;
        const Floats sum = reduce_rows(sums, [](Floats x, Floats y) { return x + y; });
        store_partial(out, accumulate ? load_partial(out, width) + sum : sum, width);
      }
    }
  });
}

template <class In, class Out>
void multiply(Stream& stream, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
              void* c, bool accumulate) {
  const bool few = shape.m <= kRowsOfDotProducts && !shape.independent_rows;
  if (shape.batch == 1 && few && b.transposed && !a.transposed) {
    multiply_by_dot_products(shape, static_cast<const In*>(a.data), static_cast<const In*>(b.data),
                             static_cast<Out*>(c), accumulate);
  } else {
    Product<In, Out>(stream, shape, a, b, c, accumulate).run();
  }
}

}  // namespace

void multiply_packed(Stream& stream, const GemmShape& shape, const GemmOperand& a,
                     const GemmOperand& b, void* c, bool accumulate) {
  if (shape.input == DType::f32) return multiply<float, float>(stream, shape, a, b, c, accumulate);
  if (shape.output == DType::f32)
    return multiply<bfloat16, float>(stream, shape, a, b, c, accumulate);
  multiply<bfloat16, bfloat16>(stream, shape, a, b, c, accumulate);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

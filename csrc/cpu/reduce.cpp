// Reduction over any axes: sum, mean, max, min. In y the reduced axes are left out, or of size 1.
// Reads x once, so memory is the bound.
//
// The last axis of the plan (csrc/ops/plans/reduce.h) decides:
//   reduced: rows of contiguous numbers become one number each;
//   kept:    rows are added to each other, column by column, in tiles that stay in the cache.
// In both cases f32 partial results cover at most kBlock numbers and are then combined in f64, so
// ten million numbers keep six digits. Work is cut into pieces of fixed size, which are combined in
// order, so the bits of a result depend neither on scheduling nor on the number of threads. i32
// sums are exact in 64 bits and wrap around at the end; the mean of i32 is refused. max and min are
// NaN if any number is.

#include <limits>

#include "cpu/kernel.h"
#include "ops/checks/reduce.h"
#include "ops/plans/reduce.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

constexpr int64_t kBlock = 1024;   // numbers that are combined in f32
constexpr int64_t kPiece = 65536;  // fewest numbers that one task reduces
constexpr int64_t kTile = 512;     // columns of a tile
constexpr int64_t kRows = 32;      // rows of a tile that are combined in f32

// ---- the operations, over the type in which they combine: float, or double and int64_t above it

struct Sum {
  template <class T>
  static T initial() {
    return T(0);
  }
  template <class T>
  static T combine(T a, T b) {
    return a + b;
  }
  static Floats combine(Floats a, Floats b) { return a + b; }
};
struct Max {
  template <class T>
  static T initial() {
    return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                                : std::numeric_limits<T>::min();
  }
  template <class T>
  static T combine(T a, T b) {
    return a > b || a != a ? a : b;
  }
  static Floats combine(Floats a, Floats b) { return maximum(a, b); }
};
struct Min {
  template <class T>
  static T initial() {
    return std::numeric_limits<T>::has_infinity ? std::numeric_limits<T>::infinity()
                                                : std::numeric_limits<T>::max();
  }
  template <class T>
  static T combine(T a, T b) {
    return a < b || a != a ? a : b;
  }
  static Floats combine(Floats a, Floats b) { return minimum(a, b); }
};

template <class T>
struct WideOf {
  using type = double;
};
template <>
struct WideOf<int32_t> {
  using type = int64_t;
};

// ---- contiguous numbers to one

// Reduces at most kBlock numbers.
template <class Op, class T>
double reduce_block(const T* x, int64_t n) {
  Floats part[4];
  for (Floats& p : part) p = broadcast(Op::template initial<float>());
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) part[k] = Op::combine(part[k], load(x + i + k * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) part[0] = Op::combine(part[0], load(x + i));
  float lane[kLanes];
  store(lane, Op::combine(Op::combine(part[0], part[1]), Op::combine(part[2], part[3])));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) lane[k] = Op::combine(lane[k], lane[k + width]);
  }
  float result = lane[0];
  for (; i < n; ++i) result = Op::combine(result, to_float(x[i]));
  return result;
}

template <class Op, class T>
double reduce_run(const T* x, int64_t n) {
  double result = Op::template initial<double>();
  for (int64_t i = 0; i < n; i += kBlock)
    result = Op::combine(result, reduce_block<Op>(x + i, std::min(kBlock, n - i)));
  return result;
}

template <class Op>
int64_t reduce_run(const int32_t* x, int64_t n) {
  int64_t result = Op::template initial<int64_t>();
  for (int64_t i = 0; i < n; ++i) result = Op::combine(result, static_cast<int64_t>(x[i]));
  return result;
}

// ---- rows to one row of n <= kTile columns

template <class Op, class T>
void add_rows(const T* const* rows, int64_t count, double* result, int64_t n) {
  float part[kTile];
  std::fill(part, part + n, Op::template initial<float>());
  for (int64_t r = 0; r < count; ++r) {
    for_each_vector(0, n, [&](int64_t i, auto v) {
      v.store(part + i, Op::combine(v.load(part + i), v.load(rows[r] + i)));
    });
  }
  for (int64_t i = 0; i < n; ++i) result[i] = Op::combine(result[i], static_cast<double>(part[i]));
}

template <class Op>
void add_rows(const int32_t* const* rows, int64_t count, int64_t* result, int64_t n) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < n; ++i)
      result[i] = Op::combine(result[i], static_cast<int64_t>(rows[r][i]));
  }
}

// ---- launchers

template <class T>
struct Output {
  T* data;
  double factor;  // 1/count for mean
  template <class Wide>
  void write(int64_t i, Wide value) const {
    if constexpr (std::is_same_v<T, int32_t>) {
      data[i] = static_cast<int32_t>(static_cast<uint64_t>(value));
    } else {
      data[i] = from_float<T>(static_cast<float>(static_cast<double>(value) * factor));
    }
  }
};

// Reduces rows of contiguous numbers: each number of y comes from `plan.reduced` rows of `length`.
template <class Op, class T, class Y>
void reduce_last(Stream& stream, const T* x, const Output<Y>& y, const ReductionPlan& plan) {
  using Wide = typename WideOf<T>::type;
  const int64_t outputs = count_of(plan.kept);
  const int64_t rows = count_of(plan.reduced);
  // A piece is several whole rows, or a part of one long row.
  const int64_t rows_per_piece = std::max<int64_t>(1, kPiece / plan.length);
  const int64_t parts_per_row = plan.length > kPiece ? (plan.length + kPiece - 1) / kPiece : 1;
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece * parts_per_row;
  const auto piece = [&](int64_t output, int64_t p) {
    const T* start = x + offset_of(plan.kept, output);
    if (parts_per_row > 1) {
      const int64_t begin = p % parts_per_row * kPiece;
      return reduce_run<Op>(start + offset_of(plan.reduced, p / parts_per_row) + begin,
                            std::min(kPiece, plan.length - begin));
    }
    Wide result = Op::template initial<Wide>();
    const int64_t end = std::min(rows, (p + 1) * rows_per_piece);
    for (int64_t row = p * rows_per_piece; row < end; ++row) {
      result = Op::combine(result,
                           Wide(reduce_run<Op>(start + offset_of(plan.reduced, row), plan.length)));
    }
    return result;
  };
  if (pieces == 1) {
    return parallel_for(outputs, rows * plan.length, [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output) y.write(output, piece(output, 0));
    });
  }
  Scratch scratch(stream, static_cast<size_t>(outputs * pieces) * sizeof(Wide));
  Wide* partial = scratch.as<Wide>();
  parallel_for(outputs * pieces, std::min(kPiece, rows * plan.length),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) partial[i] = piece(i / pieces, i % pieces);
               });
  for (int64_t output = 0; output < outputs; ++output) {
    Wide result = partial[output * pieces];
    for (int64_t p = 1; p < pieces; ++p) result = Op::combine(result, partial[output * pieces + p]);
    y.write(output, result);
  }
}

// Adds whole rows to each other: y has `plan.kept` rows of `length` columns, each from
// `plan.reduced` rows of x.
template <class Op, class T, class Y>
void reduce_leading(Stream& stream, const T* x, const Output<Y>& y, const ReductionPlan& plan) {
  using Wide = typename WideOf<T>::type;
  const int64_t outputs = count_of(plan.kept);
  const int64_t rows = count_of(plan.reduced);
  const int64_t tiles = (plan.length + kTile - 1) / kTile;
  const int64_t width = std::min(kTile, plan.length);
  const int64_t rows_per_piece = std::max(kRows, kPiece / width);
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
  const auto reduce_tile = [&](int64_t output, int64_t p, int64_t column, Wide* result, int64_t n) {
    const T* start = x + offset_of(plan.kept, output) + column;
    std::fill(result, result + n, Op::template initial<Wide>());
    const int64_t last = std::min(rows, (p + 1) * rows_per_piece);
    for (int64_t row = p * rows_per_piece; row < last; row += kRows) {
      const T* addresses[kRows];
      const int64_t count = std::min(kRows, last - row);
      for (int64_t r = 0; r < count; ++r) addresses[r] = start + offset_of(plan.reduced, row + r);
      add_rows<Op>(addresses, count, result, n);
    }
  };
  if (pieces == 1) {
    return parallel_for(outputs * tiles, rows * width, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column = task % tiles * kTile;
        const int64_t n = std::min(kTile, plan.length - column);
        Wide result[kTile];
        reduce_tile(task / tiles, 0, column, result, n);
        for (int64_t i = 0; i < n; ++i) y.write(task / tiles * plan.length + column + i, result[i]);
      }
    });
  }
  Scratch scratch(stream, static_cast<size_t>(outputs * pieces * plan.length) * sizeof(Wide));
  Wide* partial = scratch.as<Wide>();  // (outputs, pieces, length)
  parallel_for(outputs * pieces * tiles, std::min(rows, rows_per_piece) * width,
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t column = task % tiles * kTile;
                   const int64_t row_of_partial = task / tiles;
                   reduce_tile(row_of_partial / pieces, row_of_partial % pieces, column,
                               partial + row_of_partial * plan.length + column,
                               std::min(kTile, plan.length - column));
                 }
               });
  parallel_for(outputs * plan.length, pieces, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Wide* column = partial + i / plan.length * pieces * plan.length + i % plan.length;
      Wide result = column[0];
      for (int64_t p = 1; p < pieces; ++p) result = Op::combine(result, column[p * plan.length]);
      y.write(i, result);
    }
  });
}

// y f32 is allowed for x bf16: gradients of parameters are kept in f32.
template <class Op>
void run(Stream& stream, const In& x, Out& y, const ReductionPlan& plan, double factor) {
  const auto with = [&]<class T, class Y>() {
    const Output<Y> output{y.data<Y>(), factor};
    if (plan.last_is_reduced) {
      reduce_last<Op>(stream, x.data<T>(), output, plan);
    } else {
      reduce_leading<Op>(stream, x.data<T>(), output, plan);
    }
  };
  if (x.dtype == DType::i32) return with.template operator()<int32_t, int32_t>();
  if (x.dtype == DType::f32) return with.template operator()<float, float>();
  if (y.dtype == DType::f32) return with.template operator()<bfloat16, float>();
  with.template operator()<bfloat16, bfloat16>();
}

}  // namespace

void reduce(Stream& stream, In x, Out y, IntList axes, std::string kind) {
  const Reduction reduction = check_reduce(x, y, axes);
  const ReductionPlan plan = plan_reduction(x.shape, reduction.is_reduced);
  if (kind == "sum") return run<Sum>(stream, x, y, plan, 1);
  if (kind == "mean") {
    check_float("x", x);
    return run<Sum>(stream, x, y, plan, 1 / reduction.count);
  }
  if (kind == "max") return run<Max>(stream, x, y, plan, 1);
  if (kind == "min") return run<Min>(stream, x, y, plan, 1);
  throw Error("ERR_ARGUMENT", format("unknown kind \"{}\"", kind));
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

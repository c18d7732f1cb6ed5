// RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), over the last axis:
//   y = x / sqrt(mean(x²) + eps) · weight
// The add form puts the residual in front:  r = x + skip;  y = norm(r). It reads 2 tensors and
// writes 2: the floor is bytes / bandwidth. The norm sees r as it is stored (rounded), because
// backward will see it so.
// Backward, with n = x · rstd:
//   dx = rstd · (w·dy − n · mean(w·dy·n)) + dr (assigned);  weight_grad += Σ rows dy · n
// Weight gradients are summed per fixed block of rows, then over the blocks in order, which makes
// them deterministic.

#include <limits>

#include "cpu/kernel.h"
#include "ops/checks/rms_norm.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

constexpr float kLeastSquare = 1e-30f;  // smallest mean of squares that f32 sums without loss

// y (columns) = x (columns) · rstd · weight (columns)
template <class T, class W>
void scale_row(const T* x, const W* weight, float rstd, T* y, int64_t columns) {
  for_each_vector(0, columns, [&](int64_t i, auto lanes) {
    lanes.store(y + i, lanes.load(x + i) * rstd * lanes.load(weight + i));
  });
}

// Computes rstd from the squares of a row (columns), summed lane by lane. Squares of numbers beyond
// 1e18 overflow and those of numbers below 1e-18 vanish; the row is then read again and summed in
// double.
template <class T>
float rstd_of(Floats squares, const T* row, int64_t columns, float eps) {
  const float mean = horizontal_sum(squares) / static_cast<float>(columns) + eps;
  if (mean >= kLeastSquare && mean <= std::numeric_limits<float>::max())
    return 1.0f / std::sqrt(mean);
  double sum = 0;
  for (int64_t i = 0; i < columns; ++i)
    sum += static_cast<double>(to_float(row[i])) * to_float(row[i]);
  return static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(columns) + eps));
}

template <class T, class W>
void forward(const T* x, const T* skip, const W* weight, T* r, T* y, float* rstd, NormSize size,
             float eps) {
  parallel_rows(size.rows, size.columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row * size.columns;
      Floats squares = {};
      if (skip) {
        for_each_vector(start, start + size.columns, [&](int64_t i, auto lanes) {
          lanes.store(r + i, lanes.load(x + i) + lanes.load(skip + i));
          const Floats sum = lanes.load(r + i);
          squares += sum * sum;
        });
      } else {
        for_each_vector(start, start + size.columns, [&](int64_t i, auto lanes) {
          const Floats value = lanes.load(x + i);
          squares += value * value;
        });
      }
      rstd[row] = rstd_of(squares, (skip ? r : x) + start, size.columns, eps);
      scale_row((skip ? r : x) + start, weight, rstd[row], y + start, size.columns);
    }
  });
}

// Computes one row. `partial` (columns) f32 takes the row's share of the weight gradient, and may
// be null. dx may be dy or dr.
template <class T, class W>
void backward_row(const T* dy, const T* x, const W* weight, float rstd, const T* dr, T* dx,
                  float* partial, int64_t columns) {
  Floats products = {};
  for_each_vector(0, columns, [&](int64_t i, auto lanes) {
    products += lanes.load(dy + i) * lanes.load(weight + i) * lanes.load(x + i);
  });
  const float along_x = horizontal_sum(products) * rstd * rstd / static_cast<float>(columns);
  for_each_vector(0, columns, [&](int64_t i, auto lanes) {
    const Floats value = lanes.load(x + i);
    const Floats gradient = lanes.load(dy + i);
    if (partial) lanes.store(partial + i, lanes.load(partial + i) + gradient * (value * rstd));
    Floats result = (gradient * lanes.load(weight + i) - value * along_x) * rstd;
    if (dr) result += lanes.load(dr + i);
    lanes.store(dx + i, result);
  });
}

constexpr int64_t kMostBlocks = 64;  // most blocks of rows, each with a partial weight gradient
constexpr int64_t kLeastRows = 16;   // fewest rows in a block, so that partial sums cost little

template <class T, class W>
void backward(Stream& stream, const T* dy, const T* x, const W* weight, const float* rstd,
              const T* dr, T* dx, float* weight_grad, NormSize size) {
  const auto [rows, columns] = size;
  const int64_t block = std::max(kLeastRows, (rows + kMostBlocks - 1) / kMostBlocks);
  const int64_t blocks = (rows + block - 1) / block;
  Scratch scratch(stream, weight_grad ? static_cast<size_t>(blocks * columns) * sizeof(float) : 0);
  float* partials = weight_grad ? scratch.as<float>() : nullptr;

  parallel_chunks(rows, block, columns, [&](int64_t begin, int64_t end) {
    float* partial = partials ? partials + begin / block * columns : nullptr;
    if (partial) std::fill_n(partial, columns, 0.0f);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row * columns;
      backward_row(dy + start, x + start, weight, rstd[row], dr ? dr + start : nullptr, dx + start,
                   partial, columns);
    }
  });
  if (!weight_grad) return;
  parallel_chunks(columns, 512, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = 0; b < blocks; ++b) {
      for_each_vector(begin, end, [&](int64_t i, auto lanes) {
        lanes.store(weight_grad + i,
                    lanes.load(weight_grad + i) + lanes.load(partials + b * columns + i));
      });
    }
  });
}

}  // namespace

void rms_norm_forward(Stream&, In x, In weight, Out y, Out rstd, double eps) {
  const NormSize size = check_rms_norm_forward(x, weight, y, rstd);
  with_float("x", x, [&]<class T>() {
    with_float("weight", weight, [&]<class W>() {
      forward<T, W>(x.data<T>(), nullptr, weight.data<W>(), nullptr, y.data<T>(),
                    rstd.data<float>(), size, static_cast<float>(eps));
    });
  });
}

void add_rms_norm_forward(Stream&, In x, In skip, In weight, Out r, Out y, Out rstd, double eps) {
  const NormSize size = check_add_rms_norm_forward(x, skip, weight, r, y, rstd);
  with_float("x", x, [&]<class T>() {
    with_float("weight", weight, [&]<class W>() {
      forward<T, W>(x.data<T>(), skip.data<T>(), weight.data<W>(), r.data<T>(), y.data<T>(),
                    rstd.data<float>(), size, static_cast<float>(eps));
    });
  });
}

void rms_norm_backward(Stream& stream, In dy, In x, In weight, In rstd, std::optional<In> dr,
                       Out dx, std::optional<InOut> weight_grad) {
  const NormSize size = check_rms_norm_backward(dy, x, weight, rstd, dr, dx, weight_grad);
  with_float("x", x, [&]<class T>() {
    with_float("weight", weight, [&]<class W>() {
      backward<T, W>(stream, dy.data<T>(), x.data<T>(), weight.data<W>(), rstd.data<float>(),
                     dr ? dr->data<T>() : nullptr, dx.data<T>(),
                     weight_grad ? weight_grad->data<float>() : nullptr, size);
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

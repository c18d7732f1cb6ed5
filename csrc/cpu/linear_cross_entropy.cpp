// The output head and its loss in one op: mean cross-entropy of x (N,D) · weight (V,D)ᵀ, with the
// gradients of both in the same pass. Logits exist for one chunk of rows at a time, in f32, and
// turn into their own gradient before the next chunk:
//   logits = x wᵀ;  loss += lse - logits[target];  d = (softmax - onehot) / count;
//   dx = d w;  dweight += dᵀ x
// With a gradient of each row's loss given, that number takes the place of 1 / count.
// This takes three products and no second forward, whereas saving the logits would cost N·V·4
// bytes. In bf16 the gradient of the logits is rounded to bf16 for the last two products, whose
// sums are f32.
#include <algorithm>
#include <optional>

#include "cpu/cross_entropy.h"
#include "cpu/gemm.h"
#include "ops/checks/cross_entropy.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// A chunk's logits should stay near the cores, but each chunk passes over all of weight and
// dweight.
constexpr int64_t kChunkBytes = 16 << 20;
constexpr int64_t kFewestRows = 64;

int64_t rows_per_chunk(int64_t rows, int64_t classes) {
  const int64_t most =
      std::max(kFewestRows, kChunkBytes / (classes * static_cast<int64_t>(sizeof(float))));
  const int64_t chunks = (rows + most - 1) / most;
  return (rows + chunks - 1) / chunks;
}

// Returns whether the target is the argmax of a row: the first of the largest, where a NaN counts
// as the largest. `highest` is the row's maximum.
bool is_argmax(const float* logits, int32_t target, float highest) {
  const auto is_largest = [&](float x) { return x == highest || (x != x && highest != highest); };
  return is_largest(logits[target]) && std::none_of(logits, logits + target, is_largest);
}

// Returns the loss of a row and writes the gradient of its logits to `gradient`, which may be the
// logits' memory if it is float.
template <class T>
float loss_and_gradient(float* logits, int64_t classes, int32_t target, float d_loss, T* gradient,
                        int32_t* greedy) {
  const float highest = row_maximum(logits, classes);
  const float target_logit = logits[target];
  if (greedy) *greedy = is_argmax(logits, target, highest);
  const double sum = sum_of_exponentials(
      logits, classes, highest, [&](int64_t i, Floats e, auto v) { v.store(logits + i, e); });
  if (gradient) {
    const float scale = static_cast<float>(d_loss / sum);
    const float at_target = logits[target] * scale - d_loss;
    for_each_vector(0, classes,
                    [&](int64_t i, auto v) { v.store(gradient + i, v.load(logits + i) * scale); });
    gradient[target] = from_float<T>(at_target);
  }
  return (highest - target_logit) + static_cast<float>(std::log(sum));
}

template <class T>
struct Head {
  Stream& stream;
  int64_t rows, width, classes, count, ignore_index;
  bool independent_rows;
  const T *x, *weight;
  const int32_t* targets;
  const float* d_losses;       // (rows); null: 1 / count each
  const Tensor *dx, *dweight;  // null: not wanted
  float* losses;               // (rows)
  int32_t* greedy;             // (rows); null: not wanted
};

template <class T>
void run(const Head<T>& head) {
  const DType dtype = dtype_of<T>();
  const bool wants_gradient = head.dx || head.dweight;
  const int64_t chunk = rows_per_chunk(head.rows, head.classes);
  const Scratch logits_memory(head.stream,
                              static_cast<size_t>(chunk * head.classes) * sizeof(float));
  float* logits = logits_memory.as<float>();
  std::optional<Scratch> narrow;  // the gradient of the logits, where it is not f32
  if (wants_gradient && sizeof(T) != sizeof(float)) {
    narrow.emplace(head.stream, static_cast<size_t>(chunk * head.classes) * sizeof(T));
  }
  T* gradient =
      wants_gradient ? (narrow ? narrow->as<T>() : reinterpret_cast<T*>(logits)) : nullptr;
  const float inverse_count = 1.0f / static_cast<float>(head.count);

  const bool several = head.rows > chunk;
  const GemmShape to_logits = {1,     chunk,      head.classes,         head.width,
                               dtype, DType::f32, head.independent_rows};
  const GemmShape to_dx = {
      1, chunk, head.width, head.classes, dtype, head.dx ? head.dx->dtype : dtype};
  std::optional<PreparedOperand> for_logits, for_dx;
  if (several) for_logits.emplace(head.stream, to_logits, GemmOperand{head.weight, true});
  if (several && head.dx) for_dx.emplace(head.stream, to_dx, GemmOperand{head.weight, false});
  auto multiply = [&](std::optional<PreparedOperand>& prepared, GemmShape shape, int64_t rows,
                      const void* a, bool transposed, void* c) {
    if (prepared && rows == chunk) return prepared->multiply(a, c);
    shape.m = rows;
    multiply_matrices(head.stream, shape, {a, false}, {head.weight, transposed}, c, false);
  };

  for (int64_t first = 0; first < head.rows; first += chunk) {
    const int64_t rows = std::min(chunk, head.rows - first);
    const T* x = head.x + first * head.width;
    multiply(for_logits, to_logits, rows, x, true, logits);
    parallel_rows(rows, head.classes, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* row_gradient = gradient ? gradient + row * head.classes : nullptr;
        int32_t* row_greedy = head.greedy ? head.greedy + first + row : nullptr;
        if (head.targets[first + row] == head.ignore_index) {
          if (gradient) std::memset(row_gradient, 0, static_cast<size_t>(head.classes) * sizeof(T));
          head.losses[first + row] = 0;
          if (row_greedy) *row_greedy = 0;
        } else {
          head.losses[first + row] = loss_and_gradient(
              logits + row * head.classes, head.classes, head.targets[first + row],
              head.d_losses ? head.d_losses[first + row] : inverse_count, row_gradient, row_greedy);
        }
      }
    });
    if (head.dx) {
      char* dx = static_cast<char*>(head.dx->raw()) +
                 static_cast<size_t>(first * head.width) * size_of(head.dx->dtype);
      multiply(for_dx, to_dx, rows, gradient, false, dx);
    }
    if (head.dweight) {
      multiply_matrices(head.stream, {1, head.classes, head.width, rows, dtype, DType::f32},
                        {gradient, true}, {x, false}, head.dweight->raw(), first > 0);
    }
  }
}

void fill_with_zeros(const Tensor& tensor) { std::memset(tensor.raw(), 0, tensor.bytes()); }

}  // namespace

void linear_cross_entropy(Stream& stream, In x, In weight, In targets, std::optional<In> d_losses,
                          std::optional<Out> loss, std::optional<Out> losses,
                          std::optional<Out> greedy, std::optional<Out> dx,
                          std::optional<Out> dweight, int64_t ignore_index, bool independent_rows) {
  check_linear_cross_entropy(x, weight, targets, d_losses, loss, losses, greedy, dx, dweight);
  const int64_t rows = x.dim(0), count = count_targets(targets, weight.dim(0), ignore_index);
  std::optional<Scratch> own;
  if (!losses) own.emplace(stream, static_cast<size_t>(rows) * sizeof(float));
  float* of_rows = losses ? losses->data<float>() : own->as<float>();
  if (count == 0) {
    if (losses) fill_with_zeros(*losses);
    if (greedy) fill_with_zeros(*greedy);
    if (dx) fill_with_zeros(*dx);
    if (dweight) fill_with_zeros(*dweight);
    if (loss) loss->data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  with_float("x", x, [&]<class T>() {
    run<T>({stream, rows, x.dim(1), weight.dim(0), count, ignore_index, independent_rows,
            x.data<T>(), weight.data<T>(), targets.data<int32_t>(),
            d_losses ? d_losses->data<float>() : nullptr, dx ? &*dx : nullptr,
            dweight ? &*dweight : nullptr, of_rows, greedy ? greedy->data<int32_t>() : nullptr});
  });
  if (loss) loss->data<float>()[0] = mean_loss(of_rows, rows, count);
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

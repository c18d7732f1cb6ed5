// Mean cross-entropy of given logits (N,V) and target ids i32 (N); targets equal to ignore_index
// are left out.
//   forward   loss = mean((max - logits[target]) + log_sum),  log_sum = log(sum(exp(logits - max)))
//   backward  d_logits = d_loss / count · (exp((logits - max) - log_sum) - onehot(target))
//             and 0 in ignored rows
// The backward pass gets max and log_sum separately: far from 0 their sum would round log_sum away.
#include "cpu/cross_entropy.h"

#include "cpu/cpu_ops.h"
#include "ops/checks/cross_entropy.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void cross_entropy_forward(Stream& stream, In logits, In targets, Out loss, Out statistics,
                           int64_t ignore_index) {
  check_cross_entropy_forward(logits, targets, loss, statistics);
  const int64_t rows = logits.dim(0), classes = logits.dim(1);
  const int64_t count = count_targets(targets, classes, ignore_index);
  const int32_t* target = targets.data<int32_t>();
  const Scratch scratch(stream, static_cast<size_t>(rows) * sizeof(float));
  float* losses = scratch.as<float>();
  float *highest = statistics.data<float>(), *log_sum = highest + rows;
  with_float("logits", logits, [&]<class T>() {
    const T* x = logits.data<T>();
    parallel_rows(rows, classes, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = x + row * classes;
        highest[row] = row_maximum(from, classes);
        const double sum =
            sum_of_exponentials(from, classes, highest[row], [](int64_t, Floats, auto) {});
        log_sum[row] = static_cast<float>(std::log(sum));
        losses[row] = target[row] == ignore_index
                          ? 0.0f
                          : (highest[row] - to_float(from[target[row]])) + log_sum[row];
      }
    });
  });
  loss.data<float>()[0] = mean_loss(losses, rows, count);
}

// d_logits may be the same memory as logits.
void cross_entropy_backward(Stream&, In d_loss, In logits, In targets, In statistics, Out d_logits,
                            int64_t ignore_index) {
  check_cross_entropy_backward(d_loss, logits, targets, statistics, d_logits);
  const int64_t rows = logits.dim(0), classes = logits.dim(1);
  const int64_t count = count_targets(targets, classes, ignore_index);
  const int32_t* target = targets.data<int32_t>();
  const float *highest = statistics.data<float>(), *log_sum = highest + rows;
  const float scale = count > 0 ? d_loss.data<float>()[0] / static_cast<float>(count) : 0.0f;
  with_float("logits", logits, [&]<class T>() {
    const T* x = logits.data<T>();
    T* dx = d_logits.data<T>();
    parallel_rows(rows, classes, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = x + row * classes;
        T* to = dx + row * classes;
        if (target[row] == ignore_index) {
          std::memset(to, 0, static_cast<size_t>(classes) * sizeof(T));
          continue;
        }
        const float shifted = (to_float(from[target[row]]) - highest[row]) - log_sum[row];
        const float at_target = (std::exp(shifted) - 1.0f) * scale;
        for_each_vector(0, classes, [&](int64_t i, auto v) {
          v.store(to + i, exp((v.load(from + i) - highest[row]) - log_sum[row]) * scale);
        });
        to[target[row]] = from_float<T>(at_target);
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// Checks the memory-bound CUDA kernels against float64 on random inputs, and times them against
// their floors:
//   kernels_bench [check] [time]
// Times are for TinyLlama-1.1B at 16 × 2048 tokens. The floor is the time of the bytes that must
// move, at 3.0 TB/s.
#include <optional>

#include "harness.h"

using namespace bench;
using namespace llamaforge;

namespace {

const char* name_of_type(float) { return "f32"; }
const char* name_of_type(bfloat16) { return "bf16"; }

// ---- checks -------------------------------------------------------------------------------------

template <class T, class W>
void check_rms_norm(int64_t rows, int64_t columns, bool add) {
  const std::string name =
      format("rms_norm {} {}x{}{}", name_of_type(T{}), rows, columns, add ? " add" : "");
  const Tensor x = random<T>({rows, columns}), skip = random<T>({rows, columns}),
               weight = random<W>({columns});
  const Tensor dy = random<T>({rows, columns}), dr = random<T>({rows, columns});
  const Tensor y = empty({rows, columns}, dtype_of<T>()), r = empty({rows, columns}, dtype_of<T>());
  const Tensor dx = empty({rows, columns}, dtype_of<T>()), rstd = empty({rows}, DType::f32);
  const Tensor weight_grad = random<float>({columns});
  const auto before = download<float>(weight_grad);
  run([&](Stream& s) {
    if (add) {
      cuda::add_rms_norm_forward(s, in(x), in(skip), in(weight), out(r), out(y), out(rstd), 1e-5);
    } else {
      cuda::rms_norm_forward(s, in(x), in(weight), out(y), out(rstd), 1e-5);
    }
    cuda::rms_norm_backward(s, in(dy), in(add ? r : x), in(weight), in(rstd),
                            add ? std::optional(in(dr)) : std::nullopt, out(dx),
                            in_out(weight_grad));
  });
  const auto a = wide<T>(x), b = wide<T>(skip), w = wide<W>(weight), g = wide<T>(dy),
             d = wide<T>(dr);
  const auto residual = add ? wide<T>(r) : a;
  std::vector<double> y_ref(a.size()), dx_ref(a.size()), r_ref(a.size()),
      w_ref(before.begin(), before.end());
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0, products = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const size_t at = row * columns + i;
      r_ref[at] = a[at] + b[at];
      squares += residual[at] * residual[at];
      products += g[at] * w[i] * residual[at];
    }
    const double factor = 1 / std::sqrt(squares / columns + 1e-5);
    for (int64_t i = 0; i < columns; ++i) {
      const size_t at = row * columns + i;
      y_ref[at] = residual[at] * factor * w[i];
      dx_ref[at] = (g[at] * w[i] - residual[at] * products * factor * factor / columns) * factor +
                   (add ? d[at] : 0);
      w_ref[i] += g[at] * residual[at] * factor;
    }
  }
  if (add) compare<T>(name + " r", r, r_ref);
  compare<T>(name + " y", y, y_ref);
  compare<T>(name + " dx", dx, dx_ref);
  compare<float>(name + " weight_grad", weight_grad, w_ref);
}

template <class T>
void check_rope(int64_t batch, int64_t time, int64_t heads, int64_t rotated, int64_t size,
                bool in_place) {
  const Tensor x = random<T>({batch, time, heads * size}),
               table = empty({time + 3, size / 2, 2}, DType::f32);
  const auto values = wide<T>(x);
  const Tensor y = in_place ? x : empty(x.shape, x.dtype), back = empty(x.shape, x.dtype);
  run([&](Stream& s) {
    cuda::rope_table(s, out(table), 10000.0);
    cuda::rope(s, in(x), in(table), std::nullopt, out(y), heads, rotated, 3, false);
    cuda::rope(s, in(y), in(table), std::nullopt, out(back), heads, rotated, 3, true);
  });
  std::vector<double> reference = values;
  for (int64_t token = 0; token < batch * time; ++token) {
    for (int64_t head = 0; head < rotated; ++head) {
      for (int64_t i = 0; i < size / 2; ++i) {
        const double angle = (3 + token % time) * std::pow(10000.0, -2.0 * i / size);
        const size_t at = (token * heads + head) * size + i;
        reference[at] = values[at] * std::cos(angle) - values[at + size / 2] * std::sin(angle);
        reference[at + size / 2] =
            values[at] * std::sin(angle) + values[at + size / 2] * std::cos(angle);
      }
    }
  }
  const std::string name = format("rope {} hd{} {}/{}", name_of_type(T{}), size, rotated, heads);
  compare<T>(name, y, reference);
  compare<T>(name + " and back", back, values);
}

template <class T>
void check_swiglu(int64_t rows, int64_t ffn) {
  const Tensor gate_up = random<T>({rows, 2 * ffn}, 2), dy = random<T>({rows, ffn});
  const Tensor y = empty({rows, ffn}, dtype_of<T>()),
               d_gate_up = empty({rows, 2 * ffn}, dtype_of<T>());
  run([&](Stream& s) {
    cuda::swiglu_forward(s, in(gate_up), out(y));
    cuda::swiglu_backward(s, in(dy), in(gate_up), out(d_gate_up));
  });
  const auto x = wide<T>(gate_up), d = wide<T>(dy);
  std::vector<double> y_ref(d.size()), d_ref(x.size());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < ffn; ++i) {
      const double g = x[row * 2 * ffn + i], u = x[row * 2 * ffn + ffn + i],
                   s = 1 / (1 + std::exp(-g));
      y_ref[row * ffn + i] = g * s * u;
      d_ref[row * 2 * ffn + i] = d[row * ffn + i] * u * s * (1 + g * (1 - s));
      d_ref[row * 2 * ffn + ffn + i] = d[row * ffn + i] * g * s;
    }
  }
  const std::string name = format("swiglu {} {}x{}", name_of_type(T{}), rows, ffn);
  compare<T>(name + " y", y, y_ref);
  compare<T>(name + " d_gate_up", d_gate_up, d_ref);
}

template <class T>
void check_embedding(int64_t tokens, int64_t vocab, int64_t hidden, bool skewed) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (auto& id : ids) {
    id = static_cast<int32_t>(generator()() % static_cast<uint32_t>(vocab));
    if (skewed && generator()() % 4) id = static_cast<int32_t>(vocab / 2);
  }
  const Tensor places = upload<int32_t>({tokens}, ids), weight = random<T>({vocab, hidden}),
               dy = random<T>({tokens, hidden});
  const Tensor y = empty({tokens, hidden}, dtype_of<T>()),
               weight_grad = random<float>({vocab, hidden});
  const auto before = download<float>(weight_grad);
  const Tensor again = upload<float>({vocab, hidden}, before);
  run([&](Stream& s) {
    cuda::embedding_forward(s, in(places), in(weight), out(y));
    cuda::embedding_backward(s, in(places), in(dy), in_out(weight_grad));
    cuda::embedding_backward(s, in(places), in(dy), in_out(again));
  });
  const auto w = wide<T>(weight), d = wide<T>(dy);
  std::vector<double> y_ref(d.size()), w_ref(before.begin(), before.end());
  for (int64_t n = 0; n < tokens; ++n) {
    for (int64_t i = 0; i < hidden; ++i) {
      y_ref[n * hidden + i] = w[ids[n] * hidden + i];
      w_ref[ids[n] * hidden + i] += d[n * hidden + i];
    }
  }
  const std::string name =
      format("embedding {} {} of {} x {}", name_of_type(T{}), tokens, vocab, hidden);
  compare<T>(name, y, y_ref);
  compare<float>(name + " weight_grad", weight_grad, w_ref);
  expect(same_bits(download<float>(weight_grad), download<float>(again)),
         "embedding_backward repeats");
}

template <class T>
void check_cross_entropy(int64_t rows, int64_t classes, int64_t width) {
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  for (auto& id : ids)
    id = generator()() % 5 == 0
             ? -100
             : static_cast<int32_t>(generator()() % static_cast<uint32_t>(classes));
  const Tensor targets = upload<int32_t>({rows}, ids), logits = random<T>({rows, classes}, 2);
  const Tensor loss = empty({1}, DType::f32), statistics = empty({2, rows}, DType::f32),
               d_loss = upload<float>({1}, {1.5f});
  const Tensor d_logits = empty({rows, classes}, dtype_of<T>());
  const Tensor x = random<T>({rows, width}),
               weight = random<T>({classes, width}, 1.0f / std::sqrt(static_cast<float>(width)));
  const Tensor head_loss = empty({1}, DType::f32), dx = empty({rows, width}, dtype_of<T>());
  const Tensor dweight = empty({classes, width}, DType::f32), loss_alone = empty({1}, DType::f32);
  run([&](Stream& s) {
    cuda::cross_entropy_forward(s, in(logits), in(targets), out(loss), out(statistics), -100);
    cuda::cross_entropy_backward(s, in(d_loss), in(logits), in(targets), in(statistics),
                                 out(d_logits), -100);
    cuda::linear_cross_entropy(s, in(x), in(weight), in(targets), std::nullopt, out(head_loss),
                               std::nullopt, std::nullopt, out(dx), out(dweight), -100, false);
    cuda::linear_cross_entropy(s, in(x), in(weight), in(targets), std::nullopt, out(loss_alone),
                               std::nullopt, std::nullopt, std::nullopt, std::nullopt, -100, false);
  });
  double count = 0;
  for (const int32_t id : ids) count += id != -100;
  const auto softmax = [&](const std::vector<double>& z, std::vector<double>& d, double scale) {
    double sum = 0;
    for (int64_t n = 0; n < rows; ++n) {
      double total = 0;
      for (int64_t i = 0; i < classes; ++i) total += std::exp(z[n * classes + i]);
      if (ids[n] != -100) sum += std::log(total) - z[n * classes + ids[n]];
      for (int64_t i = 0; i < classes; ++i) {
        d[n * classes + i] =
            ids[n] == -100
                ? 0
                : (std::exp(z[n * classes + i]) / total - (i == ids[n] ? 1 : 0)) * scale / count;
      }
    }
    return sum / count;
  };
  const std::string name = format("cross_entropy {} {}x{}", name_of_type(T{}), rows, classes);
  std::vector<double> d(static_cast<size_t>(rows * classes)), z(d.size());
  const double expected = softmax(wide<T>(logits), d, 1.5);
  compare<float>(name + " loss", loss, {expected});
  compare<T>(name + " d_logits", d_logits, d);
  const auto a = wide<T>(x), w = wide<T>(weight);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t i = 0; i < classes; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < width; ++k) sum += a[n * width + k] * w[i * width + k];
      z[n * classes + i] = sum;
    }
  }
  const double head_expected = softmax(z, d, 1.0);
  std::vector<double> dx_ref(a.size()), w_ref(w.size());
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t i = 0; i < classes; ++i) {
      for (int64_t k = 0; k < width; ++k) {
        dx_ref[n * width + k] += d[n * classes + i] * w[i * width + k];
        w_ref[i * width + k] += d[n * classes + i] * a[n * width + k];
      }
    }
  }
  const double tolerance = sizeof(T) == 2 ? 1e-2 : 1e-5;
  const auto near = [&](const char* part, double error) {
    expect(error < tolerance, (name + part).c_str(), error);
  };
  near(" head loss", relative_error(download<float>(head_loss), {head_expected}));
  near(" head loss alone", relative_error(download<float>(loss_alone), {head_expected}));
  near(" dx", relative_error(download<T>(dx), dx_ref));
  near(" dweight", relative_error(download<float>(dweight), w_ref));
}

template <class T>
void check_optimizer(int64_t n) {
  const bool narrow = sizeof(T) == 2;
  const Tensor weight = random<T>({n}), master = random<float>({n}), grad = random<float>({n}),
               m = random<float>({n});
  std::vector<float> second = normal<float>(static_cast<size_t>(n));
  for (float& x : second) x *= x;
  const Tensor v = upload<float>({n}, second), sum = empty({1}, DType::f32),
               loss = upload<float>({1}, {2.5f});
  const Tensor decision = empty({8}, DType::f32),
               state = upload<float>({8 + 2 * 5}, std::vector<float>(18, 0.0f));
  const auto w0 = narrow ? wide<float>(master) : wide<T>(weight), g0 = wide<float>(grad),
             m0 = wide<float>(m), v0 = wide<float>(v);
  run([&](Stream& s) {
    cuda::sum_of_squares(s, in(grad), out(sum));
    cuda::step_guard(s, in(loss), in(sum), in_out(state), out(decision), 1.0, 0.9, 0.95, 6, 6, 3);
    cuda::adamw(s, in_out(weight), narrow ? std::optional(in_out(master)) : std::nullopt, in(grad),
                in_out(m), in_out(v), in(decision), 1e-3, 0.9, 0.95, 1e-8, 0.1);
  });
  double squares = 0;
  for (const double g : g0) squares += g * g;
  const std::string name = format("optimizer {} {}", name_of_type(T{}), n);
  compare<float>(name + " sum", sum, {squares});
  const double norm = std::sqrt(squares), multiplier = std::min(1.0, 1 / (norm + 1e-6));
  compare<float>(name + " decision", decision,
                 {1, multiplier, 1 / (1 - 0.9), 1 / (1 - 0.95), norm, 0, 0, 0});
  std::vector<double> w_ref(w0.size()), m_ref(w0.size()), v_ref(w0.size());
  for (size_t i = 0; i < w0.size(); ++i) {
    const double g = g0[i] * multiplier;
    m_ref[i] = m0[i] + (g - m0[i]) * 0.1;
    v_ref[i] = 0.95 * v0[i] + 0.05 * g * g;
    w_ref[i] =
        w0[i] * (1 - 1e-3 * 0.1) - 1e-3 * (m_ref[i] * 10) / (std::sqrt(v_ref[i] * 20) + 1e-8);
  }
  compare<float>(name + " m", m, m_ref);
  compare<float>(name + " v", v, v_ref);
  compare<T>(name + " weight", weight, w_ref);
  if (narrow) compare<float>(name + " master", master, w_ref);
  // A loss that is not finite must change nothing.
  const Tensor bad = upload<float>({1}, {INFINITY});
  const auto kept = download<T>(weight);
  run([&](Stream& s) {
    cuda::step_guard(s, in(bad), in(sum), in_out(state), out(decision), 1.0, 0.9, 0.95, 6, 6, 3);
    cuda::adamw(s, in_out(weight), narrow ? std::optional(in_out(master)) : std::nullopt, in(grad),
                in_out(m), in_out(v), in(decision), 1e-3, 0.9, 0.95, 1e-8, 0.1);
  });
  expect(same_bits(kept, download<T>(weight)), (name + " skipped").c_str());
  expect(download<float>(state)[2] == 1 && download<float>(state)[4] == 1,
         (name + " state").c_str());
}

template <class T>
void check_cached(int64_t batch, int64_t heads, int64_t kv_heads, int64_t size, int64_t prompt,
                  int64_t more) {
  const int64_t width = (heads + 2 * kv_heads) * size, total = prompt + more;
  const double scale = 1 / std::sqrt(static_cast<double>(size));
  const Tensor qkv = random<T>({batch, total, width}),
               cache = empty({batch, 2, kv_heads, total + 5, size}, dtype_of<T>());
  const auto all = download<T>(qkv);
  const auto slice = [&](int64_t first, int64_t count) {
    std::vector<T> part;
    for (int64_t b = 0; b < batch; ++b) {
      part.insert(part.end(), all.begin() + (b * total + first) * width,
                  all.begin() + (b * total + first + count) * width);
    }
    return upload<T>({batch, count, width}, part);
  };
  const auto x = wide<T>(qkv);
  for (int64_t first = 0, count = prompt; first < total; first += count,
               count = std::min<int64_t>(first + count > total - 3 ? 1 : 2, total - first)) {
    count = std::min(count, total - first);
    const Tensor part = slice(first, count), o = empty({batch, count, heads * size}, dtype_of<T>());
    run([&](Stream& s) {
      cuda::attention_cached(s, in(part), in_out(cache), std::nullopt, out(o), heads, kv_heads,
                             first, scale);
    });
    std::vector<double> reference;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = first; t < first + count; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t kv = h / (heads / kv_heads);
          std::vector<double> p(static_cast<size_t>(t + 1)), y(static_cast<size_t>(size), 0.0);
          double sum = 0;
          for (int64_t j = 0; j <= t; ++j) {
            double dot = 0;
            for (int64_t d = 0; d < size; ++d) {
              dot += x[(b * total + t) * width + h * size + d] *
                     x[(b * total + j) * width + (heads + kv) * size + d];
            }
            sum += p[j] = std::exp(dot * scale);
          }
          for (int64_t j = 0; j <= t; ++j) {
            for (int64_t d = 0; d < size; ++d) {
              y[d] += p[j] / sum * x[(b * total + j) * width + (heads + kv_heads + kv) * size + d];
            }
          }
          reference.insert(reference.end(), y.begin(), y.end());
        }
      }
    }
    compare<T>(
        format("attention_cached {} hd{} at {} of {}", name_of_type(T{}), size, first, count), o,
        reference);
  }
}

void check_all() {
  for (const int64_t rows : {1, 3, 67}) {
    for (const int64_t columns : {3, 7, 8, 96, 256, 264, 768, 2048, 2056, 4104}) {
      for (const bool add : {false, true}) {
        check_rms_norm<bfloat16, bfloat16>(rows, columns, add);
        check_rms_norm<float, float>(rows, columns, add);
      }
    }
  }
  check_rms_norm<bfloat16, float>(5, 512, true);
  check_rms_norm<float, bfloat16>(5, 512, true);
  check_rms_norm<bfloat16, bfloat16>(3001, 2048, true);
  for (const int64_t size : {2, 6, 16, 64, 96, 128, 256}) {
    for (const bool in_place : {false, true}) {
      check_rope<bfloat16>(2, 5, 7, 5, size, in_place);
      check_rope<float>(2, 5, 7, 7, size, in_place);
    }
  }
  for (const int64_t ffn : {1, 7, 8, 352, 5632}) {
    check_swiglu<bfloat16>(13, ffn);
    check_swiglu<float>(13, ffn);
  }
  for (const int64_t tokens : {1, 63, 64, 65, 1000}) {
    for (const bool skewed : {false, true}) {
      check_embedding<bfloat16>(tokens, 50, 72, skewed);
      check_embedding<float>(tokens, 300, 33, skewed);
    }
  }
  check_embedding<bfloat16>(4096, 32000, 256, true);
  for (const int64_t classes : {3, 40, 1000, 2056}) {
    check_cross_entropy<bfloat16>(37, classes, 32);
    check_cross_entropy<float>(37, classes, 20);
  }
  check_cross_entropy<bfloat16>(9, 32000, 64);
  check_cross_entropy<float>(5, 40000, 16);
  for (const int64_t n : {1, 3, 4, 1027, 100003}) {
    check_optimizer<bfloat16>(n);
    check_optimizer<float>(n);
  }
  check_cached<bfloat16>(2, 8, 2, 64, 5, 7);
  check_cached<bfloat16>(1, 32, 4, 64, 200, 5);
  check_cached<float>(3, 4, 4, 20, 1, 70);
  std::printf(failures() ? "%d checks FAILED\n" : "all checks passed\n", failures());
}

// ---- times --------------------------------------------------------------------------------------

void time_all() {
  const int64_t n = 32768, d = 2048, f = 5632, vocab = 32000;
  const auto bf16 = DType::bf16;
  {
    const Tensor a = random<bfloat16>({n, d}), b = random<bfloat16>({n, d});
    report_time("copy (device to device)", 4.0 * n * d, [&](Stream&) {
      LF_CUDA_CHECK(cudaMemcpyAsync(b.raw(), a.raw(), a.bytes(), cudaMemcpyDeviceToDevice,
                                    device->compute()));
    });
    const Tensor big = empty({n, 8 * d}, bf16), big2 = empty({n, 8 * d}, bf16);
    report_time("copy of 1 GB", 4.0 * n * d * 8, [&](Stream&) {
      LF_CUDA_CHECK(cudaMemcpyAsync(big2.raw(), big.raw(), big.bytes(), cudaMemcpyDeviceToDevice,
                                    device->compute()));
    });
  }
  {
    const Tensor x = random<bfloat16>({n, d}), skip = random<bfloat16>({n, d}),
                 weight = random<bfloat16>({d});
    const Tensor y = empty({n, d}, bf16), r = empty({n, d}, bf16), rstd = empty({n}, DType::f32);
    const Tensor weight_grad = random<float>({d});
    report_time("rms_norm_forward", 4.0 * n * d, [&](Stream& s) {
      cuda::rms_norm_forward(s, in(x), in(weight), out(y), out(rstd), 1e-5);
    });
    report_time("add_rms_norm_forward", 8.0 * n * d, [&](Stream& s) {
      cuda::add_rms_norm_forward(s, in(x), in(skip), in(weight), out(r), out(y), out(rstd), 1e-5);
    });
    report_time("rms_norm_backward", 8.0 * n * d, [&](Stream& s) {
      cuda::rms_norm_backward(s, in(y), in(r), in(weight), in(rstd), in(skip), out(x),
                              in_out(weight_grad));
    });
  }
  {
    const Tensor x = random<bfloat16>({16, 2048, 40 * 64}),
                 table = empty({2048, 32, 2}, DType::f32);
    run([&](Stream& s) { cuda::rope_table(s, out(table), 10000); });
    report_time("rope in place", 2.0 * 2 * n * 36 * 64, [&](Stream& s) {
      cuda::rope(s, in(x), in(table), std::nullopt, out(x), 40, 36, 0, false);
    });
  }
  {
    const Tensor gate_up = random<bfloat16>({n, 2 * f}), y = random<bfloat16>({n, f}),
                 d_gate_up = empty({n, 2 * f}, bf16);
    report_time("swiglu_forward", 6.0 * n * f,
                [&](Stream& s) { cuda::swiglu_forward(s, in(gate_up), out(y)); });
    report_time("swiglu_backward", 10.0 * n * f,
                [&](Stream& s) { cuda::swiglu_backward(s, in(y), in(gate_up), out(d_gate_up)); });
  }
  {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    // Token frequencies are as in text: the token of rank r occurs about 1 / r as often as the
    // first.
    for (auto& id : ids)
      id = static_cast<int32_t>(
               std::pow(static_cast<double>(vocab), (generator()() >> 8) / 16777216.0)) -
           1;
    std::vector<bool> seen(static_cast<size_t>(vocab));
    double distinct = 0;
    for (const int32_t id : ids) {
      if (!seen[id]) ++distinct;
      seen[id] = true;
    }
    const Tensor places = upload<int32_t>({n}, ids), weight = random<bfloat16>({vocab, d}),
                 y = empty({n, d}, bf16);
    const Tensor weight_grad = random<float>({vocab, d});
    report_time("embedding_forward", 2.0 * n * d + 2.0 * distinct * d,
                [&](Stream& s) { cuda::embedding_forward(s, in(places), in(weight), out(y)); });
    report_time("embedding_backward", 2.0 * n * d + 8.0 * distinct * d, [&](Stream& s) {
      cuda::embedding_backward(s, in(places), in(y), in_out(weight_grad));
    });
  }
  {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (auto& id : ids) id = static_cast<int32_t>(generator()() % vocab);
    const Tensor targets = upload<int32_t>({n}, ids), x = random<bfloat16>({n, d}),
                 weight = random<bfloat16>({vocab, d}, 0.02f);
    const Tensor loss = empty({1}, DType::f32), dx = empty({n, d}, bf16),
                 dweight = empty({vocab, d}, DType::f32);
    const Tensor logits = random<bfloat16>({8192, vocab}),
                 statistics = empty({2, 8192}, DType::f32),
                 few =
                     upload<int32_t>({8192}, std::vector<int32_t>(ids.begin(), ids.begin() + 8192));
    report_time("cross_entropy_forward 8192", 2.0 * 8192 * vocab, [&](Stream& s) {
      cuda::cross_entropy_forward(s, in(logits), in(few), out(loss), out(statistics), -100);
    });
    report_time("cross_entropy_backward 8192", 4.0 * 8192 * vocab, [&](Stream& s) {
      cuda::cross_entropy_backward(s, in(loss), in(logits), in(few), in(statistics), out(logits),
                                   -100);
    });
    const Time t = measure(
        [&] {
          run([&](Stream& s) {
            cuda::linear_cross_entropy(s, in(x), in(weight), in(targets), std::nullopt, out(loss),
                                       std::nullopt, std::nullopt, out(dx), out(dweight), -100,
                                       false);
          });
        },
        device->compute(), 5);
    std::printf(
        "linear_cross_entropy %.2f ms (sustained %.2f), %.0f TFLOP/s of its three products\n",
        t.median_ms, t.sustained_ms, 6.0 * n * d * vocab / t.median_ms / 1e9);
    const Time a = measure(
        [&] {
          run([&](Stream& s) {
            cuda::linear_cross_entropy(s, in(x), in(weight), in(targets), std::nullopt, out(loss),
                                       std::nullopt, std::nullopt, std::nullopt, std::nullopt, -100,
                                       false);
          });
        },
        device->compute(), 5);
    std::printf("linear_cross_entropy, loss alone %.2f ms, %.0f TFLOP/s\n", a.median_ms,
                2.0 * n * d * vocab / a.median_ms / 1e9);
  }
  {
    const int64_t p = 44 << 20;
    const Tensor weight = random<bfloat16>({p}), master = random<float>({p}),
                 grad = random<float>({p}), m = random<float>({p}),
                 v = upload<float>({p}, std::vector<float>(static_cast<size_t>(p), 0.1f));
    const Tensor sum = empty({1}, DType::f32),
                 decision = upload<float>({8}, {1, 1, 1, 1, 0, 0, 0, 0});
    const Tensor state = upload<float>({8 + 2 * 128}, std::vector<float>(264, 0.0f)),
                 loss = upload<float>({1}, {2.0f});
    report_time("adamw of a block", 30.0 * p, [&](Stream& s) {
      cuda::adamw(s, in_out(weight), in_out(master), in(grad), in_out(m), in_out(v), in(decision),
                  1e-9, 0.9, 0.95, 1e-8, 0.1);
    });
    report_time("sum_of_squares of a block", 4.0 * p,
                [&](Stream& s) { cuda::sum_of_squares(s, in(grad), out(sum)); });
    report_time("step_guard, window 128", 0, [&](Stream& s) {
      cuda::step_guard(s, in(loss), in(sum), in_out(state), out(decision), 1, 0.9, 0.95, 6, 6, 20);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  device = std::make_shared<cuda::CudaStream>(0);
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "check") == 0) check_all();
    if (std::strcmp(argv[i], "time") == 0) time_all();
  }
  wait();
  return failures() != 0;
}

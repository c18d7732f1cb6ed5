// Checks and times kernels that choose from rows or normalise them, random numbers, and products of
// one row with a matrix:
//   rows_bench [check] [time]
// The floor is the time of the bytes that must move, at 3.0 TB/s.
#include <limits>
#include <optional>

#include "cuda/gemm/gemm_context.h"
#include "cuda/gemm/gemv.h"
#include "harness.h"

using namespace bench;
using namespace llamaforge;

namespace {

template <class T>
void check_softmax(int64_t rows, int64_t n) {
  const Tensor x = random<T>({rows, n}, 3), dy = random<T>({rows, n});
  for (const bool log_form : {false, true}) {
    const Tensor y = empty({rows, n}, dtype_of<T>()), dx = empty({rows, n}, dtype_of<T>());
    run([&](Stream& s) {
      cuda::softmax(s, in(x), out(y), log_form);
      cuda::softmax_backward(s, in(dy), in(y), out(dx), log_form);
    });
    const auto a = wide<T>(x), g = wide<T>(dy), stored = wide<T>(y);
    std::vector<double> y_ref(a.size()), dx_ref(a.size());
    for (int64_t row = 0; row < rows; ++row) {
      double highest = -INFINITY, sum = 0, dot = 0, total = 0;
      for (int64_t i = row * n; i < (row + 1) * n; ++i) highest = std::max(highest, a[i]);
      for (int64_t i = row * n; i < (row + 1) * n; ++i) sum += std::exp(a[i] - highest);
      for (int64_t i = row * n; i < (row + 1) * n; ++i) {
        y_ref[i] = log_form ? a[i] - highest - std::log(sum) : std::exp(a[i] - highest) / sum;
        dot += log_form ? g[i] : g[i] * stored[i];
        total += stored[i];
      }
      for (int64_t i = row * n; i < (row + 1) * n; ++i) {
        dx_ref[i] = log_form ? g[i] - std::exp(stored[i]) * dot : stored[i] * (g[i] - dot / total);
      }
    }
    const std::string name =
        format("softmax {} bytes {}x{}{}", sizeof(T), rows, n, log_form ? " log" : "");
    compare<T>(name, y, y_ref);
    compare<T>(name + " dx", dx, dx_ref);
  }
}

template <class T>
void check_argmax(int64_t rows, int64_t n, bool nan) {
  std::vector<T> values = normal<T>(static_cast<size_t>(rows * n));
  std::vector<int32_t> expected;
  for (int64_t row = 0; row < rows; ++row) {
    T* of_row = values.data() + row * n;
    for (int64_t i = 0; i < n; ++i) {  // few distinct numbers, so that there are ties
      of_row[i] = from_float<T>(std::round(2 * to_float(of_row[i])) / 2);
    }
    if (nan && row % 3 == 1)
      of_row[generator()() % n] = of_row[generator()() % n] = from_float<T>(NAN);
    int64_t best = 0;
    for (int64_t i = 1; i < n; ++i) {
      const float a = to_float(of_row[i]), b = to_float(of_row[best]);
      if (b == b && (a > b || a != a)) best = i;
    }
    expected.push_back(static_cast<int32_t>(best));
  }
  const Tensor x = upload<T>({rows, n}, values), index = empty({rows}, DType::i32);
  run([&](Stream& s) { cuda::argmax(s, in(x), out(index)); });
  expect(download<int32_t>(index) == expected,
         format("argmax {} bytes {}x{}", sizeof(T), rows, n).c_str());
}

template <class T>
void check_vector(int64_t n, int64_t k) {
  const Tensor x = random<T>({1, k}), w = random<T>({n, k}), y = empty({1, n}, dtype_of<T>());
  run([&](Stream& s) { cuda::gemm(s, in(x), in(w), out(y), false, true, false); });
  const auto a = wide<T>(x), b = wide<T>(w);
  std::vector<double> reference(static_cast<size_t>(n));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) reference[row] += a[i] * b[row * k + i];
  }
  compare<T>(format("product of a row, {} bytes {}x{}", sizeof(T), n, k), y, reference);
}

void check_all() {
  for (const int64_t n :
       {1, 7, 8, 100, 256, 504, 1000, 1024, 2048, 2056, 5000, 16384, 16392, 32000}) {
    check_softmax<bfloat16>(5, n);
    check_softmax<float>(5, n);
    for (const bool nan : {false, true}) {
      check_argmax<bfloat16>(7, n, nan);
      check_argmax<float>(7, n, nan);
      check_argmax<bfloat16>(1100, std::min<int64_t>(n, 9000), nan);
    }
  }
  for (const int64_t n : {1, 7, 8, 9, 2048, 2051}) {
    for (const int64_t k : {8, 24, 256, 2048, 2056, 5632}) {
      check_vector<bfloat16>(n, k);
      check_vector<float>(n, k);
    }
  }
  std::printf(failures() ? "%d checks FAILED\n" : "all checks passed\n", failures());
}

// The products of one token in TinyLlama-1.1B. Each layer has weights of its own, so that no cache
// holds them.
void time_token() {
  constexpr int64_t d = 2048, f = 5632, vocab = 32000, layers = 22;
  const std::pair<int64_t, int64_t> shapes[] = {{2560, d}, {d, d}, {2 * f, d}, {d, f}};
  std::vector<Tensor> weights;
  double bytes = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (const auto& [n, k] : shapes) weights.push_back(random<bfloat16>({n, k}, 0.02f));
  }
  weights.push_back(random<bfloat16>({vocab, d}, 0.02f));
  for (const Tensor& w : weights) bytes += static_cast<double>(w.bytes());
  const Tensor x = random<bfloat16>({1, f}), y = empty({1, vocab}, DType::bf16);
  const auto token = [&](bool by_cublas) {
    for (const Tensor& w : weights) {
      const cuda::GemmShape shape = {1, 1, w.dim(0), w.dim(1), DType::bf16, DType::bf16};
      const cuda::GemmOperand a{x.raw(), false}, b{w.raw(), true};
      if (by_cublas) {
        device->gemm().multiply(shape, a, b, y.raw(), false);
      } else {
        cuda::multiply_vector(*device, shape, a, b, y.raw(), false);
      }
    }
  };
  run([&](Stream&) { token(true); });  // chooses the algorithms
  report_time("a token's products, cuBLASLt", bytes, [&](Stream&) { token(true); });
  report_time("a token's products, here", bytes, [&](Stream&) { token(false); });
  // These products run again as a CUDA graph, without the cost of launches.
  for (const bool by_cublas : {true, false}) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    LF_CUDA_CHECK(cudaStreamBeginCapture(device->compute(), cudaStreamCaptureModeRelaxed));
    token(by_cublas);
    LF_CUDA_CHECK(cudaStreamEndCapture(device->compute(), &graph));
    LF_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
    report_time(by_cublas ? "  as a graph, cuBLASLt" : "  as a graph, here", bytes,
                [&](Stream&) { LF_CUDA_CHECK(cudaGraphLaunch(replay, device->compute())); });
    LF_CUDA_CHECK(cudaGraphExecDestroy(replay));
    LF_CUDA_CHECK(cudaGraphDestroy(graph));
  }
}

void time_all() {
  const int64_t n = 32768, d = 2048;
  {
    const Tensor a = random<bfloat16>({n, 8 * d}), b = empty({n, 8 * d}, DType::bf16);
    report_time("copy of 1 GB", 2.0 * static_cast<double>(a.bytes()), [&](Stream&) {
      LF_CUDA_CHECK(cudaMemcpyAsync(b.raw(), a.raw(), a.bytes(), cudaMemcpyDeviceToDevice,
                                    device->compute()));
    });
    const double bytes = static_cast<double>(a.bytes());
    const auto as = [](const Tensor& t, Shape shape) {
      return Tensor{t.storage, 0, std::move(shape), t.dtype};
    };
    for (const int64_t width : {256, 512, 1024, 2048, 8192, 16384, 32768}) {
      const int64_t rows = a.numel() / width;
      const Tensor x = as(a, {rows, width}), y = as(b, {rows, width}),
                   index = empty({rows}, DType::i32);
      const auto name = [&](const char* op) { return format("{} rows of {}", op, width); };
      report_time(name("softmax").c_str(), 2 * bytes,
                  [&](Stream& s) { cuda::softmax(s, in(x), out(y), false); });
      report_time(name("argmax").c_str(), bytes,
                  [&](Stream& s) { cuda::argmax(s, in(x), out(index)); });
      if (width == 2048) {
        report_time("softmax backward", 3 * bytes,
                    [&](Stream& s) { cuda::softmax_backward(s, in(x), in(y), out(y), false); });
        report_time("log-softmax", 2 * bytes,
                    [&](Stream& s) { cuda::softmax(s, in(x), out(y), true); });
      }
    }
    const Tensor f32 = empty({n, 4 * d}, DType::f32);
    report_time("rand bf16", bytes,
                [&](Stream& s) { cuda::philox_uniform(s, out(b), 0, 1, 1, 0); });
    report_time("randn bf16", bytes,
                [&](Stream& s) { cuda::philox_normal(s, out(b), 0, 1, 1, 0); });
    report_time("rand f32", bytes,
                [&](Stream& s) { cuda::philox_uniform(s, out(f32), 0, 1, 1, 0); });
    report_time("randn f32", bytes,
                [&](Stream& s) { cuda::philox_normal(s, out(f32), 0, 1, 1, 0); });
  }
  time_token();
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

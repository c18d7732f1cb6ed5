// Checks attention on CUDA against float64 and times it:
//   attention_bench [check] [time] [hopper|mma] ...
// TFLOP/s count the causal half: forward 4 · B · H · T² / 2 · head size, backward 2.5 times that.
#include "cuda/attention/attention_kernels.h"
#include "measure.h"

using namespace bench;
using namespace llamaforge::cuda;

namespace {

// ---- reference: one block per query, float64 ----------------------------------------------------

constexpr int kReferenceThreads = 128;

__device__ double block_sum(double x) {
  __shared__ double values[kReferenceThreads];
  values[threadIdx.x] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < kReferenceThreads; ++i) sum += values[i];
  __syncthreads();
  return sum;
}

__device__ float at(const bfloat16* x, size_t i) {
  return __uint_as_float(static_cast<uint32_t>(x[i].bits) << 16);
}
__device__ float at(const float* x, size_t i) { return x[i]; }

template <class T>
__global__ void reference_kernel(const T* qkv, const T* d_o, double* o, double* lse, double* dqkv,
                                 AttentionCall call) {
  extern __shared__ double p[];
  const int t = blockIdx.x, head = blockIdx.y % call.heads, batch = blockIdx.y / call.heads;
  const int hd = call.head_size, kv = head / call.group();
  const size_t row = static_cast<size_t>(batch) * call.time * call.width();
  const size_t query = row + static_cast<size_t>(t) * call.width() + head * hd;
  const size_t key = row + (call.heads + kv) * hd, value = key + call.kv_heads * hd;
  const size_t out = ((static_cast<size_t>(batch) * call.time + t) * call.heads + head) * hd;
  double sum = 0;
  for (int j = threadIdx.x; j <= t; j += kReferenceThreads) {
    double s = 0;
    for (int d = 0; d < hd; ++d) {
      s += static_cast<double>(at(qkv, query + d)) *
           at(qkv, key + static_cast<size_t>(j) * call.width() + d);
    }
    p[j] = exp(s * call.scale);
    sum += p[j];
  }
  sum = block_sum(sum);
  for (int j = threadIdx.x; j <= t; j += kReferenceThreads) p[j] /= sum;
  if (threadIdx.x == 0)
    lse[(static_cast<size_t>(batch) * call.heads + head) * call.time + t] = log(sum);
  __syncthreads();
  double row_sum = 0;
  for (int d = threadIdx.x; d < hd; d += kReferenceThreads) {
    double y = 0;
    for (int j = 0; j <= t; ++j)
      y += p[j] * at(qkv, value + static_cast<size_t>(j) * call.width() + d);
    o[out + d] = y;
    row_sum += y * at(d_o, out + d);
  }
  row_sum = block_sum(row_sum);
  for (int j = threadIdx.x; j <= t; j += kReferenceThreads) {
    double d_p = 0;
    for (int d = 0; d < hd; ++d) {
      const size_t v = static_cast<size_t>(j) * call.width() + d;
      d_p += static_cast<double>(at(d_o, out + d)) * at(qkv, value + v);
    }
    const double d_s = p[j] * (d_p - row_sum) * call.scale;
    for (int d = 0; d < hd; ++d) {
      const size_t v = static_cast<size_t>(j) * call.width() + d;
      atomicAdd(&dqkv[value + v], p[j] * at(d_o, out + d));
      atomicAdd(&dqkv[key + v], d_s * at(qkv, query + d));
      atomicAdd(&dqkv[query + d], d_s * at(qkv, key + v));
    }
  }
}

// ---- the kernels under test ---------------------------------------------------------------------

enum class Path { hopper, mma, plain };
const char* const kNames[] = {"hopper", "mma", "plain"};

template <class T>
void forward(Path path, const AttentionCall& call, const T* qkv, T* o, float* of_forward) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    static const Buffer<int> next(1);
    if (path == Path::hopper)
      return attention_forward_hopper(call, qkv, o, of_forward, next.data());

    if (path == Path::mma) return attention_forward_mma(call, qkv, o, of_forward);
  }

  attention_forward_plain(call, qkv, o, of_forward);
}
template <class T>
void backward(Path path, const AttentionCall& call, const T* d_o, const T* qkv, const T* o,
              AttentionStatistics statistics, T* dqkv) {
  attention_statistics(call, d_o, o, statistics);
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (path == Path::hopper) return attention_backward_hopper(call, d_o, qkv, statistics, dqkv);

    if (path == Path::mma) return attention_backward_mma(call, d_o, qkv, statistics, dqkv);
  }

  attention_backward_plain(call, d_o, qkv, statistics, dqkv);
}

AttentionCall call_of(int batch, int time, int heads, int kv_heads, int head_size) {
  int processors;
  LF_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  return {batch,      time,      heads,
          kv_heads,   head_size, 1.0f / std::sqrt(static_cast<float>(head_size)),
          processors, nullptr};
}

template <class T>
void check(Path path, const AttentionCall& call, float spread) {
  const size_t tokens = static_cast<size_t>(call.batch) * call.time,
               outputs = tokens * call.heads * call.head_size;
  const Buffer<T> qkv(normal<T>(tokens * call.width(), spread)), d_o(normal<T>(outputs));
  Buffer<T> o(outputs), dqkv(tokens * call.width());
  Buffer<float> of_forward(2 * tokens * call.heads),
      statistics(AttentionStatistics::bytes(call) / sizeof(float));
  const AttentionStatistics of_rows(call, of_forward.data(), statistics.data());
  Buffer<double> ref_o(outputs), ref_lse(tokens * call.heads),
      ref_dqkv(std::vector<double>(tokens * call.width(), 0.0));
  const dim3 grid(call.time, call.batch * call.heads);
  LF_CUDA_CHECK(cudaFuncSetAttribute(reference_kernel<T>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10));
  reference_kernel<T><<<grid, kReferenceThreads, (call.time + 4) * sizeof(double)>>>(
      qkv.data(), d_o.data(), ref_o.data(), ref_lse.data(), ref_dqkv.data(), call);
  LF_CUDA_CHECK(cudaGetLastError());

  std::vector<T> first_o, first_dqkv;
  for (int run = 0; run < 2; ++run) {
    o.poison();
    dqkv.poison();
    forward<T>(path, call, qkv.data(), o.data(), of_forward.data());
    backward<T>(path, call, d_o.data(), qkv.data(), o.data(), of_rows, dqkv.data());
    if (run == 0) {
      first_o = o.read();
      first_dqkv = dqkv.read();
    }
  }
  const auto reference = ref_dqkv.read(), lse_reference = ref_lse.read();
  double error[4] = {relative_error(o.read(), ref_o.read())};
  const size_t ends[] = {0, static_cast<size_t>(call.heads),
                         static_cast<size_t>(call.heads + call.kv_heads),
                         static_cast<size_t>(call.heads + 2 * call.kv_heads)};
  for (int part = 0; part < 3; ++part) {
    double difference = 0, norm = 0;
    for (size_t token = 0; token < tokens; ++token) {
      for (size_t i = ends[part] * call.head_size; i < ends[part + 1] * call.head_size; ++i) {
        const double r = reference[token * call.width() + i],
                     d = to_float(first_dqkv[token * call.width() + i]) - r;
        difference += d * d;
        norm += r * r;
      }
    }
    error[part + 1] = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  }
  double lse_error = 0;
  const auto rows = of_forward.read();
  for (size_t i = 0; i < lse_reference.size(); ++i) {
    const double lse = double{rows[i]} * call.scale + rows[lse_reference.size() + i];
    const double d = std::abs(lse - lse_reference[i]);
    if (!(d <= lse_error)) lse_error = d;
  }
  const bool narrow = sizeof(T) == 2;
  const bool good = error[0] < (narrow ? 1e-2 : 1e-5) && error[1] < (narrow ? 2e-2 : 1e-5) &&
                    error[2] < (narrow ? 2e-2 : 1e-5) && error[3] < (narrow ? 2e-2 : 1e-5) &&
                    lse_error < 1e-3;
  const bool repeats = same_bits(first_o, o.read()) && same_bits(first_dqkv, dqkv.read());
  if (!good || !repeats) ++failures();
  std::printf("%s %-6s B%d T%-4d H%d/%d hd%-3d  o %.1e  dq %.1e  dk %.1e  dv %.1e  lse %.0e%s\n",
              good && repeats ? "ok    " : "FAILED", kNames[static_cast<int>(path)], call.batch,
              call.time, call.heads, call.kv_heads, call.head_size, error[0], error[1], error[2],
              error[3], lse_error, repeats ? "" : "  DIFFERS BETWEEN RUNS");
}

void time_it(Path path, const AttentionCall& call) {
  const size_t tokens = static_cast<size_t>(call.batch) * call.time,
               outputs = tokens * call.heads * call.head_size;
  const Buffer<bfloat16> qkv(normal<bfloat16>(tokens * call.width())),
      d_o(normal<bfloat16>(outputs));
  Buffer<bfloat16> o(outputs), dqkv(tokens * call.width());
  Buffer<float> of_forward(2 * tokens * call.heads),
      statistics(AttentionStatistics::bytes(call) / sizeof(float));
  const AttentionStatistics of_rows(call, of_forward.data(), statistics.data());
  const double flops = 2.0 * call.batch * call.heads * call.time * call.time * call.head_size;
  const Time f =
      measure([&] { forward<bfloat16>(path, call, qkv.data(), o.data(), of_forward.data()); });
  const Time b = measure([&] {
    backward<bfloat16>(path, call, d_o.data(), qkv.data(), o.data(), of_rows, dqkv.data());
  });
  const Time s = measure([&] { attention_statistics(call, d_o.data(), o.data(), of_rows); });
  std::printf(
      "%-6s B%d T%d H%d/%d hd%d  forward %.3f ms %.0f TF (sustained %.0f)  backward %.3f ms %.0f "
      "TF (sustained %.0f)  "
      "statistics %.3f ms %.2f TB/s\n",
      kNames[static_cast<int>(path)], call.batch, call.time, call.heads, call.kv_heads,
      call.head_size, f.median_ms, flops / f.median_ms / 1e9, flops / f.sustained_ms / 1e9,
      b.median_ms, 2.5 * flops / b.median_ms / 1e9, 2.5 * flops / b.sustained_ms / 1e9, s.median_ms,
      (2.0 * 2 * outputs + 8.0 * of_forward.count()) / s.median_ms / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  const auto asked = [&](const char* word) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], word) == 0) return true;
    }
    return false;
  };
  const bool all = !asked("hopper") && !asked("mma") && !asked("plain");
  if (asked("check")) {
    for (const Path path : {Path::hopper, Path::mma, Path::plain}) {
      if (!all && !asked(kNames[static_cast<int>(path)])) continue;
      for (const int head_size : {64, 96, 128}) {
        for (const int time : {1, 31, 63, 64, 65, 127, 128, 129, 191, 193, 257, 385, 511}) {
          check<bfloat16>(path, call_of(2, time, 4, 2, head_size), 1.0f);
        }
        check<bfloat16>(path, call_of(1, 300, 8, 1, head_size), 3.0f);
        check<bfloat16>(path, call_of(3, 640, 6, 6, head_size), 1.0f);
      }
      check<bfloat16>(path, call_of(1, 2048, 32, 4, 64), 1.0f);
      check<bfloat16>(path, call_of(1, 1000, 32, 4, 64), 2.0f);

      if (path != Path::hopper) {
        for (const int head_size : {8, 16, 40, 80})
          check<bfloat16>(path, call_of(2, 77, 4, 2, head_size), 1.0f);
      }
      if (path == Path::plain) {
        for (const int head_size : {1, 5, 20, 64, 160})
          check<float>(path, call_of(2, 77, 4, 2, head_size), 1.0f);
        check<float>(path, call_of(1, 400, 6, 3, 64), 1.0f);
      }
    }
  }
  if (asked("time")) {
    for (const Path path : {Path::hopper, Path::mma}) {
      if (!all && !asked(kNames[static_cast<int>(path)])) continue;
      time_it(path, call_of(16, 2048, 32, 4, 64));
      if (asked("more")) {
        time_it(path, call_of(4, 2048, 32, 4, 64));
        time_it(path, call_of(4, 8192, 32, 4, 64));
        time_it(path, call_of(8, 2048, 24, 8, 96));
        time_it(path, call_of(16, 2048, 16, 16, 128));
      }
    }
  }
  std::printf(failures() ? "%d FAILED\n" : "all passed\n", failures());
  return failures() != 0;
}

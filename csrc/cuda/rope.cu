// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split (NeoX) pairs as in Llama's Hugging Face
// form: element i of a head turns with element i + hd/2 by the angle position · theta^(-2i/hd). x (B,T,G·hd): a warp
// has a token, keeps its cosines and sines, and turns one head after the other. Floor: the rotated heads are read and
// written once, 9,216 bytes a token for 36 heads of 64.

#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "ops/checks/documents.h"
#include "ops/checks/rope.h"

namespace llamaforge::cuda {

namespace {

// Angles in double: at position 100,000 a float angle is off by 0.004.
__global__ void table_kernel(float* table, int64_t count, int64_t half, double theta) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const double frequency = pow(theta, -static_cast<double>(i % half) / static_cast<double>(half));
    const double angle = static_cast<double>(i / half) * frequency;
    table[2 * i] = static_cast<float>(cos(angle));
    table[2 * i + 1] = static_cast<float>(sin(angle));
  }
}

struct Shape3 {
  int64_t tokens;
  int time, width, half, rotated;  // width: of a token; rotated heads
};

// kCount pairs at a time: elements of the first half of a head, and those of its second half.
template <class T, int kCount>
struct Halves {
  float first[kCount], second[kCount];
  __device__ __forceinline__ void read(const T* x, int half) {
    if constexpr (kCount == 1) {
      first[0] = widen(x[0]);
      second[0] = widen(x[half]);
    } else {
      load(x, first);
      load(x + half, second);
    }
  }
  __device__ __forceinline__ void write(T* y, int half) const {
    if constexpr (kCount == 1) {
      y[0] = narrow<T>(first[0]);
      y[half] = narrow<T>(second[0]);
    } else {
      store(y, first);
      store(y + half, second);
    }
  }
};

// y may be x: a thread reads what it writes.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const T* x, const float* __restrict__ table, const int32_t* __restrict__ starts, T* y, Shape3 shape,
                  int64_t position, float direction) {
  const int lane = threadIdx.x % 32, places = shape.half / kCount;  // vectors of half a head
  const int at_once = max(1, 32 / places);                          // heads
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t token = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; token < shape.tokens; token += warps) {
    int64_t time = token % shape.time;
    if (starts) time -= min(max(starts[token], 0), static_cast<int>(time));  // whatever it holds, a row of the table
    const float* angles = table + (position + time) * 2 * shape.half;
    const int64_t start = token * shape.width;
    for (int first = 0; first < places; first += 32) {
      const int place = first + (places < 32 ? lane % places : lane), first_head = places < 32 ? lane / places : 0;
      if (place < places && first_head < at_once) {
        float cosine[kCount], sine[kCount];
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const float2 angle = *reinterpret_cast<const float2*>(angles + 2 * (place * kCount + k));
          cosine[k] = angle.x;
          sine[k] = angle.y * direction;
        }
#pragma unroll 4
        for (int head = first_head; head < shape.rotated; head += at_once) {
          const int64_t at = start + int64_t{head} * 2 * shape.half + place * kCount;
          Halves<T, kCount> values;
          values.read(x + at, shape.half);
#pragma unroll
          for (int k = 0; k < kCount; ++k) {
            const float a = values.first[k], b = values.second[k];
            values.first[k] = a * cosine[k] - b * sine[k];
            values.second[k] = a * sine[k] + b * cosine[k];
          }
          values.write(y + at, shape.half);
        }
      }
    }
    if (x != y) {
      for (int i = shape.rotated * 2 * shape.half + lane; i < shape.width; i += 32) y[start + i] = x[start + i];
    }
  }
}

}  // namespace

void rope_table(Stream& stream, Out table, double theta) {
  CudaStream& cuda = on_cuda(stream);
  check_rope_table(table, theta);
  const int64_t count = table.dim(0) * table.dim(1);
  if (count == 0) return;
  table_kernel<<<blocks_for(cuda, count), kThreads, 0, cuda.compute()>>>(table.data<float>(), count, table.dim(1),
                                                                         theta);
  check_launch();
}

void rope(Stream& stream, In x, In table, std::optional<In> starts, Out y, int64_t heads, int64_t rotated_heads,
          int64_t position, bool inverse) {
  CudaStream& cuda = on_cuda(stream);
  check_rope(x, table, y, heads, rotated_heads, position);
  const int32_t* document_starts = check_starts(starts, x.dim(0), x.dim(1));
  LF_CHECK(x.dim(1) <= INT32_MAX && x.dim(2) <= INT32_MAX, "x {} is too large", to_string(x.shape));
  if (x.numel() == 0) return;
  const Shape3 shape = {x.dim(0) * x.dim(1), static_cast<int>(x.dim(1)), static_cast<int>(x.dim(2)),
                        static_cast<int>(x.dim(2) / heads / 2), static_cast<int>(rotated_heads)};
  with_float("x", x, [&]<class T>() {
    const bool vectors = shape.half % kVector<T> == 0 && aligned16({x.raw(), y.raw()});
    LF_CHECK(reinterpret_cast<uintptr_t>(table.raw()) % 8 == 0, "the table starts at an odd element");
    const auto kernel = vectors ? rotate_kernel<T, kVector<T>> : rotate_kernel<T, 1>;
    kernel<<<blocks_for(cuda, shape.tokens, kThreads / 32), kThreads, 0, cuda.compute()>>>(
        x.data<T>(), table.data<float>(), document_starts, y.data<T>(), shape, position, inverse ? -1.0f : 1.0f);
  });
  check_launch();
}

}  // namespace llamaforge::cuda

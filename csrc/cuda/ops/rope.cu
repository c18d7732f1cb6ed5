// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split (NeoX) pairs as in
// Llama's Hugging Face form: element i of a head turns with element i + hd/2 by the angle
// position · theta^(-2i/hd). x (B,T,G·hd). A thread turns the pairs of two 16-byte vectors of one
// head. Its cosines and sines come from the cache, because the token's other heads use them too.
// Floor: the rotated heads are read and written once, 9,216 bytes a token for 36 heads of 64.

#include <cmath>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/pack.h"
#include "ops/checks/rope.h"

namespace llamaforge::cuda {

namespace {

// Small blocks, so that a warp that waits for the table delays few others.
constexpr int kBlock = 128;

// Angles are computed in double: at position 100,000 a float angle is off by 0.004.
__global__ void table_kernel(float* table, int64_t count, int64_t half, double theta) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const double frequency = pow(theta, -static_cast<double>(i % half) / static_cast<double>(half));
    const double angle = static_cast<double>(i / half) * frequency;
    table[2 * i] = static_cast<float>(cos(angle));
    table[2 * i + 1] = static_cast<float>(sin(angle));
  }
}

struct Shape3 {
  int tokens, time, width, half, rotated;  // width of a token; rotated: heads that turn
};

// kCount pairs: elements of the first half of a head, and the matching elements of its second half.
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

// Loads the cosines and sines of kCount places of a head.
template <int kCount>
__device__ __forceinline__ void load_angles(const float* table, float (&cosine)[kCount],
                                            float (&sine)[kCount]) {
  float pairs[2 * kCount];
  if constexpr (kCount == 1) {
    pairs[0] = table[0], pairs[1] = table[1];
  } else {
    load(table, pairs);
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) cosine[k] = pairs[2 * k], sine[k] = pairs[2 * k + 1];
}

// Runs `count` tasks, from those of token `first_token` on. The tasks of a token are the vectors of
// half a head of its rotated heads and then, if y is not x, the vectors of the heads that do not
// turn. y may be x, because a thread reads what it writes. A position outside the table's `rows` is
// reported, and the numbers that it would turn become NaN.
template <class T, int kCount>
__global__ void __launch_bounds__(kBlock)
    rotate_kernel(const T* x, const float* __restrict__ table,
                  const int32_t* __restrict__ positions, T* y, Shape3 shape, int first_token,
                  uint32_t count, uint32_t tasks, int64_t position, int64_t rows, float direction,
                  FaultSite site) {
  const uint32_t task = blockIdx.x * kBlock + threadIdx.x;
  if (task >= count) return;
  const uint32_t nth = task / tasks;
  const int token = first_token + static_cast<int>(nth),
            rest = static_cast<int>(task - nth * tasks);
  const int places = shape.half / kCount, turning = shape.rotated * places;
  const int64_t start = int64_t{token} * shape.width;
  if (rest >= turning) {
    const int64_t at = start + shape.rotated * 2 * shape.half + (rest - turning) * kCount;
    store_pack(y + at, load_pack<T, kCount>(x + at));
    return;
  }
  const int head = rest / places, place = rest - head * places;
  const int64_t at = start + head * 2 * shape.half + place * kCount;
  Halves<T, kCount> values;
  values.read(x + at, shape.half);
  const int64_t row = positions ? positions[token] : position + token % shape.time;
  float cosine[kCount], sine[kCount];
  if (row >= 0 && row < rows) {
    load_angles(table + (row * shape.half + place * kCount) * 2, cosine, sine);
  } else {
    report(site, static_cast<double>(row), token, static_cast<double>(rows - 1));
#pragma unroll
    for (int k = 0; k < kCount; ++k) cosine[k] = sine[k] = __int_as_float(0x7fffffff);
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float a = values.first[k], b = values.second[k], turned = sine[k] * direction;
    values.first[k] = a * cosine[k] - b * turned;
    values.second[k] = a * turned + b * cosine[k];
  }
  values.write(y + at, shape.half);
}

}  // namespace

void rope_table(Stream& stream, Out table, double theta) {
  CudaStream& cuda = on_cuda(stream);
  check_rope_table(table, theta);
  const int64_t count = table.dim(0) * table.dim(1);
  if (count == 0) return;
  table_kernel<<<blocks_for(cuda, count), kThreads, 0, cuda.compute()>>>(table.data<float>(), count,
                                                                         table.dim(1), theta);
  check_launch();
}

void rope(Stream& stream, In x, In table, std::optional<In> positions, Out y, int64_t heads,
          int64_t rotated_heads, int64_t position, bool inverse) {
  CudaStream& cuda = on_cuda(stream);
  check_rope(x, table, positions, y, heads, rotated_heads, position);
  LF_CHECK(x.dim(0) * x.dim(1) <= INT32_MAX && x.dim(2) <= INT32_MAX / 2, "x {} is too large",
           to_string(x.shape));
  if (x.numel() == 0) return;
  const int32_t* rows = positions ? positions->data<int32_t>() : nullptr;
  const FaultSite site =
      cuda.fault_site("ERR_POSITION", "position {} of token {} is outside the table's 0..{}");
  const Shape3 shape = {static_cast<int>(x.dim(0) * x.dim(1)), static_cast<int>(x.dim(1)),
                        static_cast<int>(x.dim(2)), static_cast<int>(x.dim(2) / heads / 2),
                        static_cast<int>(rotated_heads)};
  with_float("x", x, [&]<class T>() {
    const bool vectors = shape.half % kVector<T> == 0 && aligned16({x.raw(), table.raw(), y.raw()});
    const auto kernel = vectors ? rotate_kernel<T, kVector<T>> : rotate_kernel<T, 1>;
    const int unturned = x.raw() == y.raw() ? 0 : shape.width - shape.rotated * 2 * shape.half;
    const int tasks = (shape.rotated * shape.half + unturned) / (vectors ? kVector<T> : 1);
    if (tasks == 0) return;
    const int most = INT32_MAX / tasks;  // most tokens per launch
    for (int64_t token = 0; token < shape.tokens; token += most) {
      const uint32_t count =
          static_cast<uint32_t>(std::min<int64_t>(most, shape.tokens - token) * tasks);
      kernel<<<(count + kBlock - 1) / kBlock, kBlock, 0, cuda.compute()>>>(
          x.data<T>(), table.data<float>(), rows, y.data<T>(), shape, static_cast<int>(token),
          count, static_cast<uint32_t>(tasks), position, table.dim(0), inverse ? -1.0f : 1.0f,
          site);
    }
  });
  check_launch();
}

}  // namespace llamaforge::cuda

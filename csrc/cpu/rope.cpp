// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split (NeoX) pairs as in Llama's Hugging Face form:
// element i of a head turns with element i + hd/2 by the angle position · theta^(-2i/hd).
// Angles are computed in double: at position 100,000 a float angle is off by 0.004.
#include <cmath>
#include <vector>

#include "cpu/document_starts.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// y (2·half) = rotation of x (2·half). y may be x: a lane is read before it is written.
template <class T> void rotate_head(const T* x, const float* cosine, const float* sine, int64_t half, T* y) {
  for_each_vector(0, half, [&](int64_t i, auto v) {
    const Floats first = v.load(x + i), second = v.load(x + half + i);
    const Floats c = v.load(cosine + i), s = v.load(sine + i);
    v.store(y + i, first * c - second * s);
    v.store(y + half + i, first * s + second * c);
  });
}

template <class T>
void rotate(const Tensor& x, const float* table, const int32_t* starts, const Tensor& y, int64_t heads,
            int64_t rotated_heads, int64_t position, bool inverse) {
  const int64_t time = x.dim(1), width = x.dim(2), head_size = width / heads, half = head_size / 2;
  const T* from = x.data<T>();
  T* to = y.data<T>();
  parallel_rows(x.dim(0) * time, width, [&](int64_t begin, int64_t end) {
    std::vector<float> cosine(static_cast<size_t>(half)), sine(static_cast<size_t>(half));
    for (int64_t row = begin; row < end; ++row) {
      const float* angles = table + (position + row % time - (starts ? starts[row] : 0)) * head_size;
      for (int64_t i = 0; i < half; ++i) {
        cosine[static_cast<size_t>(i)] = angles[2 * i];
        sine[static_cast<size_t>(i)] = inverse ? -angles[2 * i + 1] : angles[2 * i + 1];
      }
      const int64_t offset = row * width, turned = rotated_heads * head_size;
      for (int64_t start = offset; start < offset + turned; start += head_size) {
        rotate_head(from + start, cosine.data(), sine.data(), half, to + start);
      }
      if (to != from) {
        std::memcpy(to + offset + turned, from + offset + turned, static_cast<size_t>(width - turned) * sizeof(T));
      }
    }
  });
}

}  // namespace

void rope_table(Stream&, Out table, double theta) {
  check_dtype("table", table, DType::f32);
  LF_CHECK(table.rank() == 3 && table.dim(2) == 2, "expected table of shape (positions, head size / 2, 2), got {}",
           to_string(table.shape));
  LF_CHECK(std::isfinite(theta) && theta > 0, "expected a positive theta, got {}", theta);
  const int64_t half = table.dim(1);
  float* out = table.data<float>();
  std::vector<double> frequency(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    frequency[static_cast<size_t>(i)] = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
  }
  parallel_rows(table.dim(0), 64 * half, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position) * frequency[static_cast<size_t>(i)];
        out[(position * half + i) * 2] = static_cast<float>(std::cos(angle));
        out[(position * half + i) * 2 + 1] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void rope(Stream&, In x, In table, std::optional<In> starts, Out y, int64_t heads, int64_t rotated_heads,
          int64_t position, bool inverse) {
  check_float("x", x);
  check_dtype("table", table, DType::f32);
  check_dtype("y", y, x.dtype);
  check_shape("y", y, x.shape);
  LF_CHECK(x.rank() == 3 && heads > 0 && x.dim(2) % heads == 0 && x.dim(2) / heads % 2 == 0,
           "expected x of shape (B,T,{}·head size) with an even head size, got {}", heads, to_string(x.shape));
  LF_CHECK(rotated_heads >= 0 && rotated_heads <= heads, "expected 0 to {} rotated heads, got {}", heads, rotated_heads);
  LF_CHECK(table.rank() == 3 && table.dim(1) == x.dim(2) / heads / 2 && table.dim(2) == 2,
           "expected table of shape (positions,{},2), got {}", x.dim(2) / heads / 2, to_string(table.shape));
  LF_CHECK(position >= 0 && position + x.dim(1) <= table.dim(0), "positions {} to {} are not in the table of {}", position,
           position + x.dim(1) - 1, table.dim(0));
  const int32_t* document_starts = checked_starts(starts, x.dim(0), x.dim(1));
  with_float("x", x, [&]<class T>() {
    rotate<T>(x, table.data<float>(), document_starts, y, heads, rotated_heads, position, inverse);
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

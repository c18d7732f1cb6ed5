// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split (NeoX) pairs as in
// Llama's Hugging Face form: element i of a head turns with element i + hd/2 by the angle
// position · theta^(-2i/hd). Angles are computed in double, because at position 100,000 a float
// angle is off by 0.004.
#include <cmath>
#include <vector>

#include "cpu/kernel.h"
#include "ops/checks/rope.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// Returns the values, or null if there are none. Throws before anything is written if a value is no
// row of the table.
const int32_t* checked_positions(const std::optional<In>& positions, int64_t rows) {
  if (!positions) return nullptr;
  const int32_t* position = positions->data<int32_t>();
  for (int64_t n = 0; n < positions->numel(); ++n) {
    if (position[n] < 0 || position[n] >= rows) {
      throw Error("ERR_POSITION", format("position {} of token {} is outside the table's 0..{}",
                                         position[n], n, rows - 1));
    }
  }
  return position;
}

// y (2·half) = rotation of x (2·half). y may be x, because a lane is read before it is written.
template <class T>
void rotate_head(const T* x, const float* cosine, const float* sine, int64_t half, T* y) {
  for_each_vector(0, half, [&](int64_t i, auto v) {
    const Floats first = v.load(x + i), second = v.load(x + half + i);
    const Floats c = v.load(cosine + i), s = v.load(sine + i);
    v.store(y + i, first * c - second * s);
    v.store(y + half + i, first * s + second * c);
  });
}

template <class T>
void rotate(const Tensor& x, const float* table, const int32_t* positions, const Tensor& y,
            int64_t heads, int64_t rotated_heads, int64_t position, bool inverse) {
  const int64_t time = x.dim(1), width = x.dim(2), head_size = width / heads, half = head_size / 2;
  const T* from = x.data<T>();
  T* to = y.data<T>();
  // Each thread has room for the angles of one row. It is allocated before the team starts, because
  // an exception could not leave the team.
  std::vector<float> own(static_cast<size_t>(head_size * omp_get_max_threads()));
  parallel_rows(x.dim(0) * time, width, [&](int64_t begin, int64_t end) {
    float* cosine = own.data() + head_size * omp_get_thread_num();
    float* sine = cosine + half;
    for (int64_t row = begin; row < end; ++row) {
      const float* angles =
          table + (positions ? positions[row] : position + row % time) * head_size;
      for (int64_t i = 0; i < half; ++i) {
        cosine[i] = angles[2 * i];
        sine[i] = inverse ? -angles[2 * i + 1] : angles[2 * i + 1];
      }
      const int64_t offset = row * width, turned = rotated_heads * head_size;
      for (int64_t start = offset; start < offset + turned; start += head_size) {
        rotate_head(from + start, cosine, sine, half, to + start);
      }
      if (to != from) {
        std::memcpy(to + offset + turned, from + offset + turned,
                    static_cast<size_t>(width - turned) * sizeof(T));
      }
    }
  });
}

}  // namespace

void rope_table(Stream&, Out table, double theta) {
  check_rope_table(table, theta);
  const int64_t half = table.dim(1);
  float* out = table.data<float>();
  std::vector<double> frequency(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    frequency[static_cast<size_t>(i)] =
        std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
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

void rope(Stream&, In x, In table, std::optional<In> positions, Out y, int64_t heads,
          int64_t rotated_heads, int64_t position, bool inverse) {
  check_rope(x, table, positions, y, heads, rotated_heads, position);
  const int32_t* rows = checked_positions(positions, table.dim(0));
  with_float("x", x, [&]<class T>() {
    rotate<T>(x, table.data<float>(), rows, y, heads, rotated_heads, position, inverse);
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

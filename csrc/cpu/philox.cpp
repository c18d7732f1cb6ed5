// Random tensors. Element i depends on seed and offset + i alone: the same numbers for any split over threads, devices or
// ranks. Every operation here is rounded once (products, fused multiply-adds, square roots, integer conversions), and the
// logarithm and sine are polynomials of our own, so another device can give the same bits.
//
// Normals by Box and Muller: words (0,1) and (2,3) of a block make two each:  √(−2 ln u) · (cos, sin)(2π a).

#include "cpu/philox.h"

#include "cpu/unary_math.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

// In (0, 1]: 31 bits and a half, so that the logarithm is finite. The largest normal is √(64 ln 2) = 6.66.
LF_INLINE Floats open_unit(Words word) {
  return fused(__builtin_convertvector(reinterpret_cast<Ints>(word >> 1), Floats), broadcast(0x1p-31f),
               broadcast(0x1p-32f));
}

// In [0, 1), 24 bits.
LF_INLINE Floats unit(Words word) {
  return __builtin_convertvector(reinterpret_cast<Ints>(word >> 8), Floats) * 0x1p-24f;
}

// −ln x for normal x in (0, 1]; Cephes' polynomial on [√½, √2).
LF_INLINE Floats negative_log(Floats x) {
  const Words shifted = reinterpret_cast<Words>(x) - 0x3f3504f3u;
  const Floats e = __builtin_convertvector(reinterpret_cast<Ints>(shifted) >> 23, Floats);
  const Floats m = reinterpret_cast<Floats>((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  Floats y = broadcast(7.0376836292e-2f);
  y = fused(y, m, broadcast(-1.1514610310e-1f));
  y = fused(y, m, broadcast(1.1676998740e-1f));
  y = fused(y, m, broadcast(-1.2420140846e-1f));
  y = fused(y, m, broadcast(1.4249322787e-1f));
  y = fused(y, m, broadcast(-1.6668057665e-1f));
  y = fused(y, m, broadcast(2.0000714765e-1f));
  y = fused(y, m, broadcast(-2.4999993993e-1f));
  y = fused(y, m, broadcast(3.3333331174e-1f));
  y = fused(y, m, broadcast(-0.5f));
  y = fused(y, m * m, m);
  return -fused(e, broadcast(0.693147181f), y);
}

struct SineCosine {
  Floats sine, cosine;
};

// Of 2π · word / 2^32. The quadrant and the rest come from the integer, without any loss.
LF_INLINE SineCosine turn(Words word) {
  const Words quadrant = (word + 0x20000000u) >> 30;
  const Ints rest = reinterpret_cast<Ints>(word - (quadrant << 30));
  const Floats angle = __builtin_convertvector(rest, Floats) * 1.46291807926716e-9f;  // 2π / 2^32; within ±π/4
  const Floats square = angle * angle;
  Floats s = broadcast(-1.9515295891e-4f);
  s = fused(s, square, broadcast(8.3321608736e-3f));
  s = fused(s, square, broadcast(-1.6666654611e-1f));
  s = fused(s, square * angle, angle);
  Floats c = broadcast(2.443315711809948e-5f);
  c = fused(c, square, broadcast(-1.388731625493765e-3f));
  c = fused(c, square, broadcast(4.166664568298827e-2f));
  c = fused(c, square, broadcast(-0.5f));
  c = fused(c, square, broadcast(1.0f));
  const auto swapped = (quadrant & 1) != 0;
  const Words sine_sign = (quadrant & 2) << 30, cosine_sign = ((quadrant + 1) & 2) << 30;
  return {reinterpret_cast<Floats>(reinterpret_cast<Words>(swapped ? c : s) ^ sine_sign),
          reinterpret_cast<Floats>(reinterpret_cast<Words>(swapped ? s : c) ^ cosine_sign)};
}

void check(const Tensor& x, int64_t offset) {
  check_float("x", x);
  if (offset < 0) throw Error("ERR_ARGUMENT", format("expected offset of at least 0, got {}", offset));
}

// x[i] = element offset + i of the sequence, where values(words, out) turns kLanes blocks into 4 vectors.
template <class T, class Values>
void generate(T* x, int64_t n, int64_t seed, int64_t offset, PhiloxStream stream, const Values& values) {
  constexpr int64_t kBatch = 4 * kLanes;
  parallel_chunks(n, kChunk, 4, [&](int64_t begin, int64_t end) {
    const int64_t last = offset + end;
    for (int64_t element = (offset + begin) / 4 * 4; element < last; element += kBatch) {
      Floats lane[4];
      values(philox(static_cast<uint64_t>(seed), stream, static_cast<uint64_t>(element / 4)), lane);
      float in_order[kBatch];
      for (int block = 0; block < kLanes; ++block) {
        for (int word = 0; word < 4; ++word) in_order[block * 4 + word] = lane[word][block];
      }
      const int64_t from = std::max(element, offset + begin), to = std::min(element + kBatch, last);
      for_each_vector(from - element, to - element, [&](int64_t i, auto lanes) {
        lanes.store(x + (element - offset) + i, lanes.load(in_order + i));
      });
    }
  });
}

// The largest T below `high`.
template <class T> float largest_below(float high) {
  float candidate = std::nextafter(high, -INFINITY);
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &candidate, sizeof bits);
    if (candidate < 0) bits += 0xffff;  // away from zero is down
    bits &= 0xffff0000u;
    std::memcpy(&candidate, &bits, sizeof candidate);
  }
  return candidate;
}

}  // namespace

void philox_normal(Stream&, Out x, double mean, double std, int64_t seed, int64_t offset) {
  check(x, offset);
  const Floats shift = broadcast(static_cast<float>(mean)), scale = broadcast(static_cast<float>(std));
  with_float("x", x, [&]<class T>() {
    generate(x.data<T>(), x.numel(), seed, offset, kNormalStream, [=](const PhiloxWords& words, Floats* out) {
      for (int pair = 0; pair < 4; pair += 2) {
        const Floats radius = sqrt(2.0f * negative_log(open_unit(words.word[pair])));
        const SineCosine direction = turn(words.word[pair + 1]);
        out[pair] = fused(scale, radius * direction.cosine, shift);
        out[pair + 1] = fused(scale, radius * direction.sine, shift);
      }
    });
  });
}

void philox_uniform(Stream&, Out x, double low, double high, int64_t seed, int64_t offset) {
  check(x, offset);
  const float from = static_cast<float>(low), to = static_cast<float>(high);
  if (!(from < to) || !std::isfinite(to - from)) {
    throw Error("ERR_ARGUMENT", format("expected finite low < high, got {} and {}", low, high));
  }
  with_float("x", x, [&]<class T>() {
    // Rounding of low + (high - low) · u, or to bf16, may reach `high`, which is not in the range.
    const Floats range = broadcast(to - from), start = broadcast(from), most = broadcast(largest_below<T>(to));
    generate(x.data<T>(), x.numel(), seed, offset, kUniformStream, [=](const PhiloxWords& words, Floats* out) {
      for (int word = 0; word < 4; ++word) out[word] = minimum(fused(range, unit(words.word[word]), start), most);
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

// Random tensors. Element i depends on seed and offset + i alone, so the numbers are equal for any
// split over threads, devices or ranks. Every operation here is rounded once (products, fused
// multiply-adds, square roots, integer conversions), and the logarithm and sine are polynomials of
// our own, so another device can give the same bits.
//
// Normal numbers come from the Box-Muller transform: words (0,1) and (2,3) of a block make two
// each, √(−2 ln u) · (cos a, sin a).
//   u = (word + ½) / 2^32, rounded to 24 bits: the largest normal is √(66 ln 2) = 6.76.
//   a is one of 2^23 angles around the circle, none of them on an axis. The lower 23 bits of the
//   second word, the last of them set, choose the angle within the right half; the highest bit
//   swaps left and right.
// The polynomials are minimax fits (scripts/fit_normals.py): −2 ln(1 + m) / m, for m from √½ − 1 to
// √2 − 1, to 1.7e-7 of its value; sine and cosine, a quarter turn to either side, to 7e-9 and 5e-8.

#include "cpu/philox.h"

#include "cpu/unary_math.h"
#include "ops/checks/random.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

// Returns numbers in [0, 1) of 24 bits.
LF_INLINE Floats unit(Words word) {
  return __builtin_convertvector(reinterpret_cast<Ints>(word >> 8), Floats) * 0x1p-24f;
}

// √(−2 ln u). The 2^-40 keeps the square away from 0, where another device's root would need a
// branch.
LF_INLINE Floats radius(Words word) {
  const Words bits = reinterpret_cast<Words>(__builtin_convertvector(word, Floats) + 0.5f);
  // The exponent of u. As an integer it is 2^23 times the exponent, which is exact as a float too.
  const Words exponent = (bits - 0x4f3504f3u) & 0xff800000u;
  const Floats m =
      fused(reinterpret_cast<Floats>(bits - exponent), broadcast(0x1p-32f), broadcast(-1.0f));
  Floats y = broadcast(2.0213795e-1f);
  y = fused(y, m, broadcast(-3.2445166e-1f));
  y = fused(y, m, broadcast(3.450166e-1f));
  y = fused(y, m, broadcast(-3.980033e-1f));
  y = fused(y, m, broadcast(4.9939817e-1f));
  y = fused(y, m, broadcast(-6.667012e-1f));
  y = fused(y, m, broadcast(1.0000073f));
  y = fused(y, m, broadcast(-1.9999999f));
  const Floats of_exponent =
      fused(__builtin_convertvector(reinterpret_cast<Ints>(exponent), Floats),
            broadcast(-2 * 0.693147181f * 0x1p-23f), broadcast(0x1p-40f));
  return sqrt(fused(y, m, of_exponent));
}

struct SineCosine {
  Floats sine, cosine;
};

// Sine of an angle within a quarter turn to either side, and the size of its cosine.
LF_INLINE SineCosine half_turn(Words word) {
  // In quarters of a turn, in (-1, 1).
  const Floats quarters = reinterpret_cast<Floats>((word & 0x007fffffu) | 0x40000001u) - 3.0f;
  const Floats square = quarters * quarters;
  Floats s = broadcast(1.5167853e-4f);
  s = fused(s, square, broadcast(-4.6741576e-3f));
  s = fused(s, square, broadcast(7.968993e-2f));
  s = fused(s, square, broadcast(-6.459638e-1f));
  s = fused(s, square, broadcast(1.5707964f));
  Floats c = broadcast(8.5819064e-4f);
  c = fused(c, square, broadcast(-2.0810628e-2f));
  c = fused(c, square, broadcast(2.5365075e-1f));
  c = fused(c, square, broadcast(-1.2336982f));
  return {s * quarters, fused(c, square, broadcast(0.99999994f))};
}

// Writes x[i] = element offset + i of the sequence; values(words, out) turns kLanes blocks into 4
// vectors.
template <class T, class Values>
void generate(T* x, int64_t n, int64_t seed, int64_t offset, PhiloxStream stream,
              const Values& values) {
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

}  // namespace

void philox_normal(Stream&, Out x, double mean, double std, int64_t seed, int64_t offset) {
  check_random(x, offset);
  const Floats shift = broadcast(static_cast<float>(mean)),
               scale = broadcast(static_cast<float>(std));
  with_float("x", x, [&]<class T>() {
    generate(x.data<T>(), x.numel(), seed, offset, kNormalStream,
             [=](const PhiloxWords& words, Floats* out) {
               for (int pair = 0; pair < 4; pair += 2) {
                 const Floats length = radius(words.word[pair]) * scale;
                 const SineCosine direction = half_turn(words.word[pair + 1]);
                 const Words side = words.word[pair + 1] & 0x80000000u;
                 out[pair] = fused(reinterpret_cast<Floats>(reinterpret_cast<Words>(length) ^ side),
                                   direction.cosine, shift);
                 out[pair + 1] = fused(length, direction.sine, shift);
               }
             });
  });
}

void philox_uniform(Stream&, Out x, double low, double high, int64_t seed, int64_t offset) {
  const UniformRange uniform = check_uniform(x, low, high, offset);
  const Floats range = broadcast(uniform.range), start = broadcast(uniform.low),
               most = broadcast(uniform.most);
  with_float("x", x, [&]<class T>() {
    generate(x.data<T>(), x.numel(), seed, offset, kUniformStream,
             [=](const PhiloxWords& words, Floats* out) {
               for (int word = 0; word < 4; ++word)
                 out[word] = minimum(fused(range, unit(words.word[word]), start), most);
             });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

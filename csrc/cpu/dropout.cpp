// Dropout (Srivastava et al. 2014): y = x · m with m = 1 / (1 − rate) or 0. Element i is kept or
// dropped by word offset + i of a Philox sequence alone, so backward makes the same m again from
// seed and offset, and nothing is stored. m is equal for any split over threads, devices or ranks.

#include "cpu/philox.h"
#include "ops/checks/random.h"

namespace llamaforge::LF_CPU_NAMESPACE {

void dropout(Stream&, In x, Out y, double rate, int64_t seed, int64_t offset) {
  const DropoutRule rule = check_dropout(x, y, rate, offset);
  constexpr int64_t kBatch = 4 * kLanes;
  with_float("x", x, [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
    parallel_chunks(x.numel(), kChunk, 4, [&](int64_t begin, int64_t end) {
      const int64_t last = offset + end;
      for (int64_t element = (offset + begin) / 4 * 4; element < last; element += kBatch) {
        const PhiloxWords words =
            philox(static_cast<uint64_t>(seed), kDropoutStream, static_cast<uint64_t>(element / 4));
        float multiplier[kBatch];
        for (int block = 0; block < kLanes; ++block) {
          for (int word = 0; word < 4; ++word) {
            multiplier[block * 4 + word] =
                words.word[word][block] >> 8 < rule.dropped_below ? 0 : rule.scale;
          }
        }
        const int64_t first = std::max(element, offset + begin),
                      stop = std::min(element + kBatch, last);
        for_each_vector(first - element, stop - element, [&](int64_t i, auto lanes) {
          const int64_t at = element - offset + i;
          lanes.store(to + at, lanes.load(from + at) * lanes.load(multiplier + i));
        });
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

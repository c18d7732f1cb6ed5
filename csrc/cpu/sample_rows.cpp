// Choosing the next token of many sequences, each with settings of its own. For one row:
//
//   x = logits, those of seen tokens divided by `repetition` (negative ones multiplied; Keskar et
//   al.
//       2019, arXiv 1909.05858), minus presence and frequency penalties of the output, plus bias
//   weight = exp((x - max x) / temperature), a whole number of 2^-40
//   kept = the top_k largest x; of those the fewest, largest first, that hold top_p of their weight
//       (Holtzman et al. 2019, arXiv 1904.09751); of those the weights of at least min_p times the
//       largest (Nguyen et al. 2024, arXiv 2407.01082). Ties go to the lower id.
//   The chosen id is the first, in the order of ids, at which the running weight exceeds a random
//   number of Philox(seed, draw) times all kept weight.
//
// Temperature 0 takes the first largest x. x = -inf is never chosen. NaN and +inf are errors.
#include <cmath>
#include <vector>

#include "cpu/kernel.h"
#include "cpu/philox.h"
#include "ops/checks/choice.h"

namespace llamaforge::LF_CPU_NAMESPACE {
namespace {

// The settings of a row, checked.
struct RowOptions {
  double temperature, top_p, min_p;
  float repetition, presence, frequency;
  int64_t top_k, seed, draw;
  int32_t* counts;
  const float* bias;
};

RowOptions options_of(const float* settings, const int32_t* numbers, int64_t row,
                      const std::optional<InOut>& counts, const std::optional<In>& bias,
                      int64_t vocab) {
  const float* s = settings + row * kSampleSettings;
  const int32_t* n = numbers + row * kSampleNumbers;
  const auto fail = [&](const char* name, const char* expected, double got) {
    throw Error("ERR_ARGUMENT",
                format("expected {} for {} of row {}, got {}", expected, name, row, got));
  };
  if (!(s[kTemperature] >= 0 && std::isfinite(s[kTemperature])))
    fail("temperature", "at least 0", s[kTemperature]);
  if (!(s[kTopP] > 0 && s[kTopP] <= 1)) fail("top_p", "above 0 and at most 1", s[kTopP]);
  if (!(s[kMinP] >= 0 && s[kMinP] <= 1)) fail("min_p", "0 to 1", s[kMinP]);
  if (!(s[kRepetition] > 0 && std::isfinite(s[kRepetition])))
    fail("repetition", "above 0", s[kRepetition]);
  if (!std::isfinite(s[kPresence])) fail("presence", "a finite number", s[kPresence]);
  if (!std::isfinite(s[kFrequency])) fail("frequency", "a finite number", s[kFrequency]);
  if (n[kTopK] < 0) fail("top_k", "at least 0", n[kTopK]);
  if (n[kDraw] < 0) fail("draw", "at least 0", n[kDraw]);
  const auto row_of = [&](const char* name, int32_t index, int64_t rows) {
    if (index < -1 || index >= rows) fail(name, rows ? "-1 or a row of it" : "-1", index);
    return index * vocab;
  };
  const int64_t counted = row_of("the row of counts", n[kCountsRow], counts ? counts->dim(0) : 0);
  const int64_t biased = row_of("the row of bias", n[kBiasRow], bias ? bias->dim(0) : 0);
  return {s[kTemperature],
          s[kTopP],
          s[kMinP],
          s[kRepetition],
          s[kPresence],
          s[kFrequency],
          n[kTopK],
          static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(n[kSeedHigh])) << 32 |
                               static_cast<uint32_t>(n[kSeedLow])),
          n[kDraw],
          counted < 0 ? nullptr : counts->data<int32_t>() + counted,
          biased < 0 ? nullptr : bias->data<float>() + biased};
}

float adjusted(float logit, int64_t id, const RowOptions& options) {
  if (options.counts && options.counts[id] != 0) {
    const int32_t written = options.counts[id] & ~kPromptToken;
    logit = logit > 0 ? logit / options.repetition : logit * options.repetition;
    if (written > 0) logit -= options.presence + options.frequency * static_cast<float>(written);
  }
  return options.bias ? logit + options.bias[id] : logit;
}

struct Candidate {
  float logit;
  int32_t id;
  uint64_t weight;
};
bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Memory of one thread. It is allocated before the team starts, because an exception could not
// leave the team.
struct Workspace {
  explicit Workspace(int64_t vocab) : logits(static_cast<size_t>(vocab)) {
    kept.reserve(static_cast<size_t>(vocab));
  }
  std::vector<float> logits;
  std::vector<Candidate> kept;
};

uint64_t mass_of(const std::vector<Candidate>& kept) {
  uint64_t sum = 0;
  for (const Candidate& candidate : kept) sum += candidate.weight;
  return sum;
}

int32_t draw(const RowOptions& options, float largest, Workspace& space) {
  auto& [logits, kept] = space;
  kept.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!(logits[id] > -INFINITY)) continue;
    const double relative = (static_cast<double>(logits[id]) - largest) / options.temperature;
    kept.push_back({logits[id], static_cast<int32_t>(id),
                    static_cast<uint64_t>(std::rint(std::exp(relative) * kSampleUnit))});
  }
  const auto most = static_cast<size_t>(options.top_k);
  if (options.top_k > 0 && most < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + options.top_k, kept.end(), likelier);
    kept.resize(most);
  }
  if (options.top_p < 1) {
    const double wanted = options.top_p * static_cast<double>(mass_of(kept));
    // A heap instead of a sort: the nucleus is often a few tokens of many thousands. Its front is
    // the likeliest.
    const auto less_likely = [](const Candidate& a, const Candidate& b) { return likelier(b, a); };
    std::make_heap(kept.begin(), kept.end(), less_likely);
    uint64_t sum = 0;
    auto end = kept.end();
    while (end != kept.begin()) {
      std::pop_heap(kept.begin(), end, less_likely);
      sum += (--end)->weight;
      if (static_cast<double>(sum) >= wanted) break;
    }
    kept.erase(kept.begin(), end);
  }
  const double least = options.min_p * kSampleUnit;
  std::erase_if(kept, [&](const Candidate& candidate) {
    return static_cast<double>(candidate.weight) < least;
  });
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const uint64_t mass = mass_of(kept);
  const auto target = std::min(
      mass - 1,
      static_cast<uint64_t>(sample_unit(options.seed, options.draw) * static_cast<double>(mass)));
  uint64_t sum = 0;
  for (const Candidate& candidate : kept) {
    sum += candidate.weight;
    if (sum > target) return candidate.id;
  }
  return kept.back().id;
}

template <class T>
int32_t choose(const T* row, const RowOptions& options, int64_t vocab, Workspace& space,
               float* logprob) {
  float* logits = space.logits.data();
  int32_t best = 0;
  for (int64_t id = 0; id < vocab; ++id) {
    logits[id] = adjusted(to_float(row[id]), id, options);
    if (logits[id] > logits[best]) best = static_cast<int32_t>(id);
  }
  const int32_t chosen = options.temperature == 0 ? best : draw(options, logits[best], space);
  if (options.counts) ++options.counts[chosen];
  if (logprob) {
    float largest = -INFINITY;
    for (int64_t id = 0; id < vocab; ++id) largest = std::max(largest, to_float(row[id]));
    double sum = 0;
    for (int64_t id = 0; id < vocab; ++id)
      sum += std::exp(static_cast<double>(to_float(row[id])) - largest);
    *logprob =
        static_cast<float>(static_cast<double>(to_float(row[chosen])) - largest - std::log(sum));
  }
  return chosen;
}

// Checks a row before the team starts, because an exception cannot leave the team.
template <class T>
void check_row(const T* logits, const RowOptions& options, int64_t row, int64_t vocab) {
  bool possible = false;
  for (int64_t id = 0; id < vocab; ++id) {
    const float logit = adjusted(to_float(logits[id]), id, options);
    if (!(to_float(logits[id]) < INFINITY) || !(logit < INFINITY)) {
      throw Error("ERR_NON_FINITE",
                  format("logit {} of row {} is {}: cannot sample from it", id, row, logit));
    }
    possible |= logit > -INFINITY;
  }
  if (!possible)
    throw Error("ERR_NON_FINITE",
                format("all logits of row {} are -inf: no token is possible", row));
}

}  // namespace

void sample_rows(Stream&, In logits, In settings, In numbers, std::optional<InOut> counts,
                 std::optional<In> bias, Out ids, std::optional<Out> logprobs) {
  const ChoiceSize size = check_sample_rows(logits, settings, numbers, counts, bias, ids, logprobs);
  std::vector<RowOptions> options;
  for (int64_t row = 0; row < size.rows; ++row) {
    options.push_back(options_of(settings.data<float>(), numbers.data<int32_t>(), row, counts, bias,
                                 size.length));
    for (int64_t before = 0; options.back().counts && before < row; ++before) {
      LF_CHECK(options[static_cast<size_t>(before)].counts != options.back().counts,
               "rows {} and {} share a row of counts", before, row);
    }
  }
  with_float("logits", logits, [&]<class T>() {
    const T* data = logits.data<T>();
    for (int64_t row = 0; row < size.rows; ++row) {
      check_row(data + row * size.length, options[static_cast<size_t>(row)], row, size.length);
    }
    std::vector<Workspace> spaces;
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) spaces.emplace_back(size.length);
    int32_t* out = ids.data<int32_t>();
    float* logprob = logprobs ? logprobs->data<float>() : nullptr;
    parallel_rows(size.rows, size.length, [&](int64_t begin, int64_t end) {
      Workspace& space = spaces[static_cast<size_t>(omp_get_thread_num())];
      for (int64_t row = begin; row < end; ++row) {
        out[row] = choose(data + row * size.length, options[static_cast<size_t>(row)], size.length,
                          space, logprob ? logprob + row : nullptr);
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

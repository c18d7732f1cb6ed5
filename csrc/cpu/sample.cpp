// Choosing tokens from logits (rows, V).
//
// argmax: the first of the largest numbers; a NaN counts as the largest, as in
// PyTorch.
// sample: softmax at a temperature, cut to the top_k most likely tokens, then to the nucleus
// (Holtzman et al. 2019, arXiv 1904.09751): the fewest tokens, most likely first, that hold top_p
// of the mass that top_k kept. Ties go to the lower id, so exactly top_k tokens remain. Sums are in
// double. Row b uses random number offset + b alone. Temperature 0 is argmax. Logits of -inf are
// never chosen. NaN and +inf are errors, because a broken model must not speak on.

#include <cmath>
#include <vector>

#include "cpu/philox.h"
#include "ops/checks/choice.h"

namespace llamaforge::LF_CPU_NAMESPACE {

namespace {

template <class T>
int32_t first_maximum(const T* row, int64_t n) {
  Floats best = broadcast(to_float(row[0]));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = maximum(load(row + i), best);
  float largest = horizontal_maximum(best);
  for (; i < n; ++i) {
    const float value = to_float(row[i]);
    if (value > largest || value != value) largest = value;
  }
  int64_t index = 0;
  if (largest != largest) {
    while (to_float(row[index]) == to_float(row[index])) ++index;
  } else {
    while (to_float(row[index]) != largest) ++index;
  }
  return static_cast<int32_t>(index);
}

int32_t first_maximum(const int32_t* row, int64_t n) {
  return static_cast<int32_t>(std::max_element(row, row + n) - row);
}

struct Candidate {
  float logit;
  int32_t id;
};
bool less_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit < b.logit : a.id > b.id;
}

// Returns the first candidate at which the running sum of weights exceeds `unit` times the total.
int32_t draw(const std::vector<Candidate>& kept, const std::vector<double>& weights, double unit) {
  double total = 0;
  for (double weight : weights) total += weight;
  const double target = unit * total;
  double sum = 0;
  size_t last = 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    if (weights[i] == 0) continue;
    sum += weights[i];
    last = i;
    if (sum > target) break;
  }
  return kept[last].id;
}

struct Options {
  double temperature;
  int64_t top_k;
  double top_p;
};

// Memory of one thread. It is allocated before the team starts, because an exception could not
// leave the team.
struct Workspace {
  explicit Workspace(int64_t vocab) {
    kept.reserve(static_cast<size_t>(vocab));
    nucleus.reserve(static_cast<size_t>(vocab));
    weights.reserve(static_cast<size_t>(vocab));
  }
  std::vector<Candidate> kept, nucleus;
  std::vector<double> weights;
};

template <class T>
int32_t sample_row(const T* row, int64_t vocab, const Options& options, double unit,
                   Workspace& space) {
  auto& [kept, nucleus, weights] = space;
  kept.clear();
  nucleus.clear();
  weights.clear();
  for (int64_t id = 0; id < vocab; ++id) {
    const float logit = to_float(row[id]);
    if (logit > -INFINITY) kept.push_back({logit, static_cast<int32_t>(id)});
  }
  const float largest = std::max_element(kept.begin(), kept.end(), less_likely)->logit;
  const auto weight_of = [&](const Candidate& candidate) {
    return std::exp((static_cast<double>(candidate.logit) - largest) / options.temperature);
  };

  const size_t most =
      options.top_k > 0 ? std::min(kept.size(), static_cast<size_t>(options.top_k)) : kept.size();
  if (most == kept.size() && options.top_p == 1) {
    for (const Candidate& candidate : kept) weights.push_back(weight_of(candidate));
    return draw(kept, weights, unit);
  }
  if (most < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + static_cast<int64_t>(most), kept.end(),
                     [](const Candidate& a, const Candidate& b) { return less_likely(b, a); });
    kept.resize(most);
  }
  double mass = 0;  // weight of all tokens that top_k keeps
  for (const Candidate& candidate : kept) mass += weight_of(candidate);
  // A heap instead of a sort: the nucleus is often a few tokens of many thousands.
  std::make_heap(kept.begin(), kept.end(), less_likely);
  double sum = 0;
  for (auto end = kept.end(); end != kept.begin();) {
    std::pop_heap(kept.begin(), end--, less_likely);
    nucleus.push_back(*end);
    weights.push_back(weight_of(*end));
    sum += weights.back();
    if (options.top_p < 1 && sum >= options.top_p * mass) break;
  }
  return draw(nucleus, weights, unit);
}

template <class T>
void check_logits(const T* logits, const ChoiceSize& size) {
  for (int64_t row = 0; row < size.rows; ++row) {
    bool possible = false;
    for (int64_t id = 0; id < size.length; ++id) {
      const float logit = to_float(logits[row * size.length + id]);
      if (!(logit < INFINITY)) {
        throw Error("ERR_NON_FINITE",
                    format("logit {} of row {} is {}: cannot sample from it", id, row, logit));
      }
      possible |= logit > -INFINITY;
    }
    if (!possible)
      throw Error("ERR_NON_FINITE",
                  format("all logits of row {} are -inf: no token is possible", row));
  }
}

}  // namespace

void argmax(Stream&, In x, Out index) {
  const ChoiceSize size = check_choice("x", x, index);
  const auto choose = [&](const auto* data) {
    int32_t* out = index.data<int32_t>();
    parallel_rows(size.rows, size.length, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        out[row] = first_maximum(data + row * size.length, size.length);
    });
  };
  if (x.dtype == DType::i32) return choose(x.data<int32_t>());
  with_float("x", x, [&]<class T>() { choose(x.data<T>()); });
}

void sample(Stream&, In logits, Out ids, double temperature, int64_t top_k, double top_p,
            int64_t seed, int64_t offset) {
  const ChoiceSize size = check_sample(logits, ids, temperature, top_k, top_p, offset);
  const Options options = {temperature, top_k, top_p};
  with_float("logits", logits, [&]<class T>() {
    const T* data = logits.data<T>();
    check_logits(data, size);
    int32_t* out = ids.data<int32_t>();
    std::vector<Workspace> spaces;
    for (int thread = 0; thread < omp_get_max_threads(); ++thread) spaces.emplace_back(size.length);
    parallel_rows(size.rows, size.length, [&](int64_t begin, int64_t end) {
      Workspace& space = spaces[static_cast<size_t>(omp_get_thread_num())];
      for (int64_t row = begin; row < end; ++row) {
        const T* own = data + row * size.length;
        out[row] = temperature == 0 ? first_maximum(own, size.length)
                                    : sample_row(own, size.length, options,
                                                 sample_unit(seed, offset + row), space);
      }
    });
  });
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

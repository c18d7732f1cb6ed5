// Choosing the next token of many sequences, each with settings of its own;
// csrc/cpu/sample_rows.cpp states the rules, which are equal here to the bit, but for the last bit
// of exp. A block takes a row and reads it some ten times from the L2 cache. It never sorts: the
// smallest set of largest logits with a given count, or a given weight, ends at a key that a radix
// search finds, 8 bits a pass. Weights are whole numbers, so their atomic sums do not depend on the
// order.
#include <cmath>

#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/philox.h"
#include "cuda/ops/row_choice.h"
#include "ops/checks/choice.h"

namespace llamaforge::cuda {
namespace {

constexpr int kBlock = 1024;
using Weight = unsigned long long;

struct Faults {
  FaultSite setting, logit, impossible;
};

struct Call {
  const float* settings;
  const int32_t* numbers;
  int32_t* counts;
  const float* bias;
  int32_t* ids;
  float* logprobs;
  int64_t vocab, counts_rows, bias_rows;
  Faults faults;
};

// A row of logits with its settings.
template <class T>
struct Row {
  const T* logits;
  int32_t* counts;
  const float* bias;
  double temperature;
  float repetition, presence, frequency, largest;

  __device__ float logit(int64_t id) const {
    float x = widen(logits[id]);
    if (counts && counts[id] != 0) {
      const int32_t written = counts[id] & ~kPromptToken;
      x = x > 0 ? x / repetition : x * repetition;
      if (written > 0)
        x = __fsub_rn(x, __fadd_rn(presence, __fmul_rn(frequency, static_cast<float>(written))));
    }
    return bias ? x + bias[id] : x;
  }
  __device__ Weight weight(float x) const {
    if (!(x > -INFINITY)) return 0;
    return static_cast<Weight>(
        rint(exp((static_cast<double>(x) - largest) / temperature) * kSampleUnit));
  }
};

__device__ Weight block_sum(Weight x) {
  Weight total;
  block_scan<kBlock>(x, total);
  return total;
}

// Returns the first id, in the order of ids, at which the running sum of value(id) exceeds
// `target`; -1 if the sum of all does not. The whole block calls it.
template <class Value>
__device__ int64_t first_above(int64_t vocab, Weight target, const Value& value) {
  __shared__ int first;
  Weight before = 0;
  for (int64_t start = 0; start < vocab; start += kBlock) {
    const int64_t id = start + threadIdx.x;
    const Weight own = id < vocab ? value(id) : 0;
    Weight total;
    const Weight running = before + block_scan<kBlock>(own, total);
    if (threadIdx.x == 0) first = kBlock;
    __syncthreads();
    if (own > 0 && running > target) atomicMin(&first, static_cast<int>(threadIdx.x));
    __syncthreads();
    const int found = first;
    __syncthreads();
    if (found < kBlock) return start + found;
    before += total;
  }
  return -1;
}

// The candidates up to a key, and of those with this very key the ids up to `id`.
struct Bound {
  uint32_t key = UINT32_MAX;
  int64_t id = INT64_MAX;
  __device__ bool holds(uint32_t other, int64_t other_id) const {
    return other < key || (other == key && other_id <= id);
  }
};

// Returns the bound of the smallest set of first candidates, by key, then id, whose value(id, key)
// reaches: reached(sum of their values) holds. Candidates with one key have one value. reached of
// the sum of all must hold.
template <class T, class Value, class Reached>
__device__ Bound bound_where(const Row<T>& row, int64_t vocab, const Value& value,
                             const Reached& reached) {
  __shared__ Weight of_digit[256];
  __shared__ uint32_t digit;
  __shared__ Weight before_digit;
  uint32_t prefix = 0;
  Weight before = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) of_digit[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t id = threadIdx.x; id < vocab; id += kBlock) {
      const uint32_t key = key_of(row.logit(id));
      if (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8)) continue;
      const Weight own = value(id, key);
      if (own > 0) atomicAdd(&of_digit[key >> shift & 255], own);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      Weight sum = before;
      uint32_t d = 0;
      for (; d < 255 && !(of_digit[d] > 0 && reached(sum + of_digit[d])); ++d) sum += of_digit[d];
      digit = d;
      before_digit = sum;
    }
    __syncthreads();
    prefix |= digit << shift;
    before = before_digit;
    __syncthreads();
  }
  // Ids with the last key are taken until their equal values reach.
  const int64_t last = first_above(vocab, 0, [&](int64_t id) -> Weight {
    return key_of(row.logit(id)) == prefix ? value(id, prefix) : 0;
  });
  if (last < 0) return {};
  const Weight each = value(last, prefix);
  Weight ties = 1;
  while (!reached(before + ties * each) && ties < static_cast<Weight>(vocab)) ++ties;
  const int64_t end = first_above(vocab, ties - 1, [&](int64_t id) -> Weight {
    return key_of(row.logit(id)) == prefix && value(id, prefix) > 0 ? 1 : 0;
  });
  return {prefix, end < 0 ? INT64_MAX : end};
}

// The log-probability of `chosen`, summed in an order that depends on the vocabulary alone.
// `highest` is the largest logit.
template <class T>
__device__ float logprob_of(const T* logits, int64_t vocab, int32_t chosen, float highest) {
  __shared__ double of_warp[32];
  const double largest = highest;
  double sum = 0;
  // A term's last bits are those of f32, as the result's; the terms are added in double.
  constexpr int kCount = kVector<T>;
  const int64_t whole = reinterpret_cast<uintptr_t>(logits) % 16 == 0 ? vocab / kCount * kCount : 0;
#pragma unroll 4
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < whole; i += kBlock * kCount) {
    const auto pack = load_pack<T, kCount>(logits + i);
    float some = 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) some += expf(widen(pack.value[j]) - highest);
    sum += some;
  }
  for (int64_t id = whole + threadIdx.x; id < vocab; id += kBlock)
    sum += expf(widen(logits[id]) - highest);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  double all = 0;
  for (int w = 0; w < kBlock / 32; ++w) all += of_warp[w];
  return static_cast<float>(static_cast<double>(widen(logits[chosen])) - largest - log(all));
}

template <class T>
__device__ int32_t draw(const Row<T>& row, const Call& call, int64_t top_k, double top_p,
                        double min_p, uint64_t seed, int64_t number) {
  const int64_t vocab = call.vocab;
  Bound kept;
  if (top_k > 0 && top_k < vocab) {
    const auto one = [&](int64_t, uint32_t key) -> Weight {
      return logit_of(key) > -INFINITY ? 1 : 0;
    };
    Weight own = 0;
    for (int64_t id = threadIdx.x; id < vocab; id += kBlock)
      own += row.logit(id) > -INFINITY ? 1 : 0;
    const Weight wanted = min(block_sum(own), static_cast<Weight>(top_k));
    kept = bound_where(row, vocab, one, [&](Weight sum) { return sum >= wanted; });
  }
  const auto kept_weight = [&](int64_t id) -> Weight {
    const float x = row.logit(id);
    return kept.holds(key_of(x), id) ? row.weight(x) : 0;
  };
  if (top_p < 1) {
    Weight own = 0;
    for (int64_t id = threadIdx.x; id < vocab; id += kBlock) own += kept_weight(id);
    const double wanted = top_p * static_cast<double>(block_sum(own));
    const Bound nucleus = bound_where(
        row, vocab, [&](int64_t id, uint32_t) { return kept_weight(id); },
        [&](Weight sum) { return static_cast<double>(sum) >= wanted; });
    kept = nucleus;
  }
  const double least = min_p * kSampleUnit;
  const auto final_weight = [&](int64_t id) -> Weight {
    const Weight weight = kept_weight(id);
    return static_cast<double>(weight) < least ? 0 : weight;
  };
  Weight own = 0;
  for (int64_t id = threadIdx.x; id < vocab; id += kBlock) own += final_weight(id);
  const Weight mass = block_sum(own);
  const Weight target =
      min(mass - 1, static_cast<Weight>(sample_unit(seed, number) * static_cast<double>(mass)));
  return static_cast<int32_t>(first_above(vocab, target, final_weight));
}

// The setting of a row that is out of range, or -1. Settings come first, then numbers.
__device__ int wrong_setting(const float* s, const int32_t* n, const Call& call) {
  if (!(s[kTemperature] >= 0 && s[kTemperature] < INFINITY)) return kTemperature;
  if (!(s[kTopP] > 0 && s[kTopP] <= 1)) return kTopP;
  if (!(s[kMinP] >= 0 && s[kMinP] <= 1)) return kMinP;
  if (!(s[kRepetition] > 0 && s[kRepetition] < INFINITY)) return kRepetition;
  if (!(fabsf(s[kPresence]) < INFINITY)) return kPresence;
  if (!(fabsf(s[kFrequency]) < INFINITY)) return kFrequency;
  if (n[kTopK] < 0) return kSampleSettings + kTopK;
  if (n[kDraw] < 0) return kSampleSettings + kDraw;
  if (n[kCountsRow] < -1 || n[kCountsRow] >= call.counts_rows) return kSampleSettings + kCountsRow;
  if (n[kBiasRow] < -1 || n[kBiasRow] >= call.bias_rows) return kSampleSettings + kBiasRow;
  return -1;
}

template <class T>
__global__ void __launch_bounds__(kBlock) sample_rows_kernel(const T* logits, const Call call) {
  const int64_t index = blockIdx.x, vocab = call.vocab;
  const float* s = call.settings + index * kSampleSettings;
  const int32_t* n = call.numbers + index * kSampleNumbers;
  const int wrong = wrong_setting(s, n, call);
  if (wrong >= 0) {
    if (threadIdx.x == 0) {
      const double got = wrong < kSampleSettings ? s[wrong] : n[wrong - kSampleSettings];
      report(call.faults.setting, wrong, static_cast<double>(index), got);
      call.ids[index] = 0;
      if (call.logprobs) call.logprobs[index] = NAN;
    }
    return;
  }
  Row<T> row = {logits + index * vocab,
                n[kCountsRow] < 0 ? nullptr : call.counts + n[kCountsRow] * vocab,
                n[kBiasRow] < 0 ? nullptr : call.bias + n[kBiasRow] * vocab,
                s[kTemperature],
                s[kRepetition],
                s[kPresence],
                s[kFrequency],
                0};
  // The largest logit and, of equal ones, the first.
  __shared__ unsigned long long best;
  if (threadIdx.x == 0) best = ~0ull;
  __syncthreads();
  unsigned long long own = ~0ull;
  bool broken = false;
  const auto see = [&](int64_t id, float x, float given) {
    if (!(x < INFINITY) || !(given < INFINITY)) {
      report(call.faults.logit, static_cast<double>(id), static_cast<double>(index), x);
      broken = true;
    }
    own = min(own, static_cast<unsigned long long>(key_of(x)) << 32 | static_cast<uint32_t>(id));
  };
  // Logits as they are given need no key each.
  const bool as_given = !row.counts && !row.bias;
  Ranked<float> first = {NAN, 0};
  if (as_given) first = first_of_largest<kWholeBlock>(row.logits, vocab);
  int32_t chosen = first.index;
  row.largest = first.value;
  if (!(first.value < INFINITY)) {
    for (int64_t id = threadIdx.x; id < vocab; id += kBlock)
      see(id, row.logit(id), widen(row.logits[id]));
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      own = min(own, __shfl_xor_sync(0xffffffffu, own, distance));
    if (threadIdx.x % 32 == 0) atomicMin(&best, own);
    broken = __syncthreads_or(broken);
    row.largest = logit_of(static_cast<uint32_t>(best >> 32));
    chosen = static_cast<int32_t>(best & 0xffffffffu);
  }
  if (broken || !(row.largest > -INFINITY)) {
    if (threadIdx.x == 0) {
      if (!broken) report(call.faults.impossible, static_cast<double>(index));
      call.ids[index] = 0;
      if (call.logprobs) call.logprobs[index] = NAN;
    }
    return;
  }
  if (row.temperature > 0) {
    const uint64_t seed =
        uint64_t{static_cast<uint32_t>(n[kSeedHigh])} << 32 | static_cast<uint32_t>(n[kSeedLow]);
    chosen = draw(row, call, n[kTopK], s[kTopP], s[kMinP], seed, n[kDraw]);
  }
  if (call.logprobs) {
    const float highest =
        as_given ? row.largest : widen(row.logits[first_maximum<kWholeBlock>(row.logits, vocab)]);
    const float logprob = logprob_of(row.logits, vocab, chosen, highest);
    if (threadIdx.x == 0) call.logprobs[index] = logprob;
  }
  if (threadIdx.x == 0) {
    call.ids[index] = chosen;
    if (row.counts) ++row.counts[chosen];
  }
}

}  // namespace

void sample_rows(Stream& stream, In logits, In settings, In numbers, std::optional<InOut> counts,
                 std::optional<In> bias, Out ids, std::optional<Out> logprobs) {
  const ChoiceSize size = check_sample_rows(logits, settings, numbers, counts, bias, ids, logprobs);
  CudaStream& cuda = on_cuda(stream);
  if (size.rows == 0) return;
  const Call call = {
      settings.data<float>(),
      numbers.data<int32_t>(),
      counts ? counts->data<int32_t>() : nullptr,
      bias ? bias->data<float>() : nullptr,
      ids.data<int32_t>(),
      logprobs ? logprobs->data<float>() : nullptr,
      size.length,
      counts ? counts->dim(0) : 0,
      bias ? bias->dim(0) : 0,
      {cuda.fault_site("ERR_ARGUMENT", "setting {} of row {} is out of range: {}"),
       cuda.fault_site("ERR_NON_FINITE", "logit {} of row {} is {}: cannot sample from it"),
       cuda.fault_site("ERR_NON_FINITE", "all logits of row {} are -inf: no token is possible")}};
  with_float("logits", logits, [&]<class T>() {
    sample_rows_kernel<<<static_cast<unsigned>(size.rows), kBlock, 0, cuda.compute()>>>(
        logits.data<T>(), call);
  });
  check_launch();
}

}  // namespace llamaforge::cuda

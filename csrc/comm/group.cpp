#include "comm/group.h"

#include <algorithm>

namespace llamaforge::comm {

namespace {

constexpr size_t kKept = 32;  // records of ended collectives that are kept
// A run checks its first kAllChecked collectives, and then one in kCheckedEach.
constexpr uint64_t kAllChecked = 256;
constexpr uint64_t kCheckedEach = 64;

void mix(uint64_t& hash, uint64_t value) {
  for (int byte = 0; byte < 8; ++byte) hash = (hash ^ (value >> 8 * byte & 0xff)) * 1099511628211u;
}

// Formats a count as "1,048,576", because counts of elements are long.
std::string grouped(int64_t count) {
  std::string text = std::to_string(count);
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}

int64_t milliseconds(Clock::duration duration) {
  return std::chrono::duration_cast<Milliseconds>(duration).count();
}

// Bytes that a rank sends with the bandwidth-optimal algorithm, with `bytes` on the larger side.
uint64_t sent_by_theory(CollectiveKind kind, uint64_t bytes, uint64_t ranks, bool is_root) {
  switch (kind) {
    case CollectiveKind::all_reduce: return 2 * bytes / ranks * (ranks - 1);
    case CollectiveKind::reduce_scatter:
    case CollectiveKind::all_gather: return bytes / ranks * (ranks - 1);
    case CollectiveKind::broadcast: return is_root && ranks > 1 ? bytes : 0;
    case CollectiveKind::barrier: return 0;
  }
  return 0;
}

bool overlap(const Tensor& a, const Tensor& b) {
  if (a.storage != b.storage) return false;
  const int64_t size = static_cast<int64_t>(size_of(a.dtype));
  return a.offset * size < (b.offset + b.numel()) * size &&
         b.offset * size < (a.offset + a.numel()) * size;
}

}  // namespace

Group::Group(std::string name, std::vector<uint32_t> ranks, uint32_t rank, Milliseconds timeout,
             std::shared_ptr<Collectives> collectives, Check check)
    : name_(std::move(name)),
      ranks_(std::move(ranks)),
      rank_(rank),
      timeout_(timeout),
      collectives_(std::move(collectives)),
      check_(std::move(check)) {}

Group::Stats Group::stats(CollectiveKind kind) const {
  std::lock_guard lock(mutex_);
  return stats_[static_cast<size_t>(kind)];
}

std::string Group::description(const Record& record) const {
  if (record.kind == CollectiveKind::barrier) return name_of(record.kind);
  return format("{} of {} {}", name_of(record.kind), grouped(record.count), name_of(record.dtype));
}

std::shared_ptr<CollectiveWork> Group::enqueue(CollectiveCall call) {
  const auto place =
      static_cast<size_t>(std::find(ranks_.begin(), ranks_.end(), rank_) - ranks_.begin());
  if (call.kind == CollectiveKind::reduce_scatter || call.kind == CollectiveKind::all_gather) {
    const bool scatter = call.kind == CollectiveKind::reduce_scatter;
    const Tensor& whole = scatter ? call.input : call.output;
    const Tensor& part = scatter ? call.output : call.input;
    LF_CHECK(whole.numel() == part.numel() * static_cast<int64_t>(size()),
             "expected {} times {} elements, got {}", size(), part.numel(), whole.numel());
    if (overlap(whole, part) &&
        part.offset != whole.offset + static_cast<int64_t>(place) * part.numel()) {
      throw Error("ERR_ARGUMENT",
                  format("[{}] input and output share memory, but not at this rank's place",
                         name_of(call.kind)));
    }
  }
  Record record = {
      0, call.kind, call.count(), call.output.dtype, Clock::now(), std::nullopt, std::nullopt};
  const bool is_root =
      call.kind == CollectiveKind::broadcast && static_cast<size_t>(call.root) == place;
  {
    std::lock_guard lock(mutex_);
    if (!aborted_.empty()) throw Error("ERR_PEER", aborted_);
    record.sequence = ++issued_;
    for (const uint64_t part :
         {static_cast<uint64_t>(call.kind), static_cast<uint64_t>(record.count),
          static_cast<uint64_t>(record.dtype), static_cast<uint64_t>(call.average),
          static_cast<uint64_t>(call.root)}) {
      mix(hash_, part);
    }
    Stats& stats = stats_[static_cast<size_t>(call.kind)];
    const uint64_t bytes = static_cast<uint64_t>(record.count) * size_of(record.dtype);
    ++stats.calls;
    stats.bytes += bytes;
    stats.sent_bytes += sent_by_theory(call.kind, bytes, size(), is_root);
    records_.push_back(record);
    // The hash covers all calls, so a difference in a call that is not sent shows in the next one
    // that is.
    if (check_ && (issued_ <= kAllChecked || issued_ % kCheckedEach == 0))
      check_(issued_, hash_, description(record));
  }
  auto work = collectives_->enqueue(std::move(call));
  std::lock_guard lock(mutex_);
  last_ = work;
  return work;
}

std::shared_ptr<CollectiveWork> Group::last_work() const {
  std::lock_guard lock(mutex_);
  return last_;
}

void Group::abort(const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (!aborted_.empty()) return;
    aborted_ = why;
  }
  collectives_->abort(why);
}

void Group::follow() {
  const auto now = Clock::now();
  progress_ = collectives_->progress();
  for (Record& record : records_) {
    if (!record.started && record.sequence <= progress_.started) record.started = now;
    if (!record.ended && record.sequence <= progress_.completed) record.ended = now;
  }
  while (records_.size() > kKept && records_.front().ended) records_.pop_front();
}

std::optional<Group::Finding> Group::poll() {
  std::lock_guard lock(mutex_);
  follow();
  if (!aborted_.empty()) return std::nullopt;
  const auto current = std::find_if(records_.begin(), records_.end(),
                                    [](const Record& record) { return !record.ended; });
  if (!progress_.failure.empty()) {
    return Finding{current == records_.end() ? 0 : current->sequence,
                   format("Rank {} found: {}", rank_, progress_.failure)};
  }
  if (current == records_.end() || !current->started) return std::nullopt;
  const auto running = Clock::now() - *current->started;
  if (running <= timeout_) return std::nullopt;
  return Finding{
      current->sequence,
      format("#{} of group {}, {}, has not ended on rank {} within {} s.", current->sequence, name_,
             description(*current), rank_, static_cast<double>(timeout_.count()) / 1000)};
}

GroupStatus Group::status() {
  std::lock_guard lock(mutex_);
  follow();
  GroupStatus status = {name_,     ranks_, issued_, progress_.started, progress_.completed,
                        "nothing", 0};
  for (const Record& record : records_) {
    if (!record.started) break;
    status.current = description(record);
    status.milliseconds =
        static_cast<uint64_t>(milliseconds(Clock::now() - record.ended.value_or(*record.started)));
    if (!record.ended) break;
  }
  return status;
}

std::string Group::history() {
  std::lock_guard lock(mutex_);
  follow();
  std::string text;
  const auto now = Clock::now();
  // Lists the last collectives that ended, and the first that have not.
  size_t waiting = 0;
  for (const Record& record : records_) {
    if (!record.ended && ++waiting > 8) break;
    text += format("\n  #{} {}: called {} ms ago, ", record.sequence, description(record),
                   milliseconds(now - record.issued));
    if (record.ended) {
      text += format("took {} ms", milliseconds(*record.ended - *record.started));
    } else if (record.started) {
      text += format("running for {} ms", milliseconds(now - *record.started));
    } else {
      text += "waits for its turn";
    }
  }
  return text;
}

}  // namespace llamaforge::comm

#include "comm/status.h"

#include <algorithm>

namespace llamaforge::comm {

namespace {

constexpr size_t kMostGroups = 1024, kMostRanks = 1 << 16, kMostLines = 40;

std::string seconds(uint64_t milliseconds) {
  return format("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100);
}

// Formats for example "rank 3", "ranks 1, 2 and 5".
std::string ranks_in_words(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size() && i < kMostLines; ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  if (ranks.size() > kMostLines) text += format(" and {} more", ranks.size() - kMostLines);
  return text;
}

const GroupStatus* find(const std::vector<GroupStatus>& groups, const std::string& name) {
  const auto found = std::find_if(groups.begin(), groups.end(),
                                  [&](const GroupStatus& g) { return g.name == name; });
  return found == groups.end() ? nullptr : &*found;
}

std::string line_of(const GroupStatus& group) {
  if (group.issued == 0) return format("has called no collective of group {} yet", group.name);
  if (group.started > group.completed) {
    return format("is in #{} of group {}, {}, for {}", group.started, group.name, group.current,
                  seconds(group.milliseconds));
  }
  if (group.issued > group.completed) {
    return format(
        "has called #{} of group {}, but its device is not there yet: it works on what comes "
        "before",
        group.completed + 1, group.name);
  }
  return format("has not called #{} of group {}: its last, {}, ended {} ago", group.issued + 1,
                group.name, group.current, seconds(group.milliseconds));
}

}  // namespace

std::string encode(const std::vector<GroupStatus>& groups) {
  Writer writer;
  writer.u32(static_cast<uint32_t>(groups.size()));
  for (const GroupStatus& group : groups) {
    writer.text(group.name).u32(static_cast<uint32_t>(group.ranks.size()));
    for (const uint32_t rank : group.ranks) writer.u32(rank);
    writer.u64(group.issued)
        .u64(group.started)
        .u64(group.completed)
        .text(group.current)
        .u64(group.milliseconds);
  }
  return writer.take();
}

std::vector<GroupStatus> decode_status(std::string_view body) {
  Reader reader(body);
  const uint32_t count = reader.u32();
  if (count > kMostGroups) throw Error("ERR_PEER", "a status of too many groups");
  std::vector<GroupStatus> groups(count);
  for (GroupStatus& group : groups) {
    group.name = reader.text();
    const uint32_t ranks = reader.u32();
    if (ranks > kMostRanks) throw Error("ERR_PEER", "a status of too many ranks");
    for (uint32_t i = 0; i < ranks; ++i) group.ranks.push_back(reader.u32());
    group.issued = reader.u64();
    group.started = reader.u64();
    group.completed = reader.u64();
    group.current = reader.text();
    group.milliseconds = reader.u64();
  }
  return groups;
}

std::string verdict_of(const Trouble& trouble, int world_size) {
  std::vector<int> lost, silent, absent;
  std::string lines;
  size_t count = 0;
  const auto add = [&](int rank, const std::string& text) {
    if (++count <= kMostLines) lines += format("\n  rank {} {}", rank, text);
  };
  // The members of the group in question.
  std::set<uint32_t> members;
  for (const auto& [rank, groups] : trouble.answers) {
    if (const GroupStatus* group = find(groups, trouble.group))
      members.insert(group->ranks.begin(), group->ranks.end());
  }
  for (int rank = 0; rank < world_size; ++rank) {
    const auto answer = trouble.answers.find(rank);
    if (const auto found = trouble.lost.find(rank); found != trouble.lost.end()) {
      lost.push_back(rank);
      add(rank, found->second);
    } else if (trouble.left.contains(rank)) {
      if (members.contains(static_cast<uint32_t>(rank))) absent.push_back(rank);
      add(rank, "has left the run");
    } else if (answer == trouble.answers.end()) {
      silent.push_back(rank);
      add(rank, "does not answer: its process is stopped, or its host or the network is down");
    } else if (const GroupStatus* group = find(answer->second, trouble.group)) {
      if (group->issued < trouble.sequence) absent.push_back(rank);
      add(rank, line_of(*group));
    } else if (members.contains(static_cast<uint32_t>(rank))) {
      absent.push_back(rank);
      add(rank, format("has not made group {}", trouble.group));
    } else if (trouble.group.empty()) {
      for (const GroupStatus& each : answer->second) add(rank, line_of(each));
    }
  }
  std::string head;
  if (!lost.empty())
    head += format("{}: the process ended or was killed, or its connection broke. ",
                   ranks_in_words(lost));
  if (!silent.empty())
    head +=
        format("{} {} not answer. ", ranks_in_words(silent), silent.size() == 1 ? "does" : "do");
  if (head.empty() && !absent.empty() && trouble.sequence > 0) {
    head += format("{} {} not called #{} of group {}. ", ranks_in_words(absent),
                   absent.size() == 1 ? "has" : "have", trouble.sequence, trouble.group);
  }
  if (count > kMostLines) lines += format("\n  and {} lines more", count - kMostLines);
  return head + trouble.cause + lines;
}

}  // namespace llamaforge::comm

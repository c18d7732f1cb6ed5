// A rank's report on its collectives when the run is in trouble, and the verdict made from the
// reports of all ranks.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "comm/frame.h"

namespace llamaforge::comm {

struct GroupStatus {
  std::string name;
  std::vector<uint32_t> ranks;  // global
  uint64_t issued = 0;          // collectives that the program has called
  uint64_t started = 0;         // ... that have started on the device
  uint64_t completed = 0;
  std::string current;  // the running collective, else the last that ended: "allReduce of 1024 f32"
  uint64_t milliseconds = 0;  // since it started or ended
};

std::string encode(const std::vector<GroupStatus>& groups);
// Throws ERR_PEER.
std::vector<GroupStatus> decode_status(std::string_view body);

// The store's knowledge of why a run failed.
struct Trouble {
  std::string cause;  // in words
  std::string group;  // group of the collective that the trouble is about, if any
  uint64_t sequence = 0;
  std::map<int, std::string> lost;  // ranks whose connection broke, with the reason
  std::set<int> left;               // ranks that said goodbye
  std::map<int, std::vector<GroupStatus>> answers;
};

// The message that every rank prints: first the ranks to look at, then the state of each rank.
std::string verdict_of(const Trouble& trouble, int world_size);

}  // namespace llamaforge::comm

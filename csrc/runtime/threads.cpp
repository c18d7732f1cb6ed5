#include "runtime/threads.h"

#include <latch>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/error.h"

namespace llamaforge {

void require_threads(int count, const char* what) {
  std::latch all_there(1);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(count));
  std::string refusal;
  try {
    while (static_cast<int>(threads.size()) < count)
      threads.emplace_back([&all_there] { all_there.wait(); });
  } catch (const std::system_error& error) {
    refusal = error.code().message();
  }
  all_there.count_down();
  for (std::thread& thread : threads) thread.join();
  if (refusal.empty()) return;
  throw Error("ERR_RESOURCE", format("[threads] the system let {} of {} threads start for {} ({}): "
                                     "set LLAMAFORGE_THREADS to fewer, or "
                                     "raise the limit on processes (ulimit -u, a container's pids "
                                     "limit) or on address space (ulimit -v)",
                                     threads.size(), count, what, refusal));
}

}  // namespace llamaforge

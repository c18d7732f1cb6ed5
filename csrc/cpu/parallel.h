// Loops over an OpenMP team. A loop body sees its own range only, so its results cannot depend on
// the number of threads unless it combines values across ranges. No kernel does so: kernels combine
// over blocks of a fixed size.
#pragma once

#include <omp.h>

#include <cstdint>

namespace llamaforge::LF_CPU_NAMESPACE {

// One thread finishes this many elements faster than a team wakes up.
constexpr int64_t kSerialElements = 32768;

// Calls body(begin, end) over [0, count), with one range for each thread, or all in this thread if
// count * weight elements are few. A region has either one thread or all, because libgomp ends the
// threads that a smaller team leaves out.
template <class Body>
void parallel_for(int64_t count, int64_t weight, const Body& body) {
  if (count <= 1 || count * weight <= kSerialElements || omp_get_max_threads() == 1) {
    body(int64_t{0}, count);
    return;
  }
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads();
    const int64_t thread = omp_get_thread_num();
    const int64_t begin = count * thread / threads;
    const int64_t end = count * (thread + 1) / threads;
    if (begin < end) body(begin, end);
  }
}

}  // namespace llamaforge::LF_CPU_NAMESPACE

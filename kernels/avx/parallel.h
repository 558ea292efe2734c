// Work shared among the threads of the OpenMP runtime that torch uses, so that
// torch.set_num_threads is obeyed.
#pragma once

#include <cstdint>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace bnbx::cpu {

// Threads that a parallel loop started here would use.
static inline int64_t thread_count() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls f(begin, end) on ranges that cover [0, n), one range a thread, none shorter than `grain`
// unless n is. f may throw std::bad_alloc, and nothing else.
template <class Function>
static inline void parallel_for(int64_t n, [[maybe_unused]] int64_t grain, Function&& f) {
  if (n <= 0) return;
#ifdef _OPENMP
  int64_t threads = (n + grain - 1) / grain;
  if (threads > thread_count()) threads = thread_count();
  if (threads > 1) {
    bool out_of_memory = false;  // an exception must not leave the parallel region
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      const int64_t count = omp_get_num_threads();
      const int64_t share = (n + count - 1) / count;
      const int64_t begin = share * omp_get_thread_num();
      try {
        if (begin < n) f(begin, begin + share < n ? begin + share : n);
      } catch (const std::bad_alloc&) {
#pragma omp critical
        out_of_memory = true;
      }
    }
    if (out_of_memory) throw std::bad_alloc();
    return;
  }
#endif
  f(0, n);
}

}  // namespace bnbx::cpu

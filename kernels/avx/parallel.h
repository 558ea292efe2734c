// Work shared among threads: those of the OpenMP runtime that torch uses, so that
// torch.set_num_threads is obeyed. On macOS those of the system's own pool, Grand Central Dispatch:
// Apple's compiler brings no OpenMP, and a second libomp beside the one in torch's wheel ends the
// process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef BNBX_DISPATCH
#include <dispatch/dispatch.h>

#include "avx/cpu_features.h"
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace bnbx::cpu {

#ifdef BNBX_DISPATCH
// Whether this thread works on a share already.
static inline bool& in_parallel() {
  static thread_local bool inside = false;
  return inside;
}

// OMP_NUM_THREADS, which torch obeys too, or all processors of the fast kind: each thread has the
// same share, and a slow one would keep the others waiting.
static inline int64_t most_threads() {
  static const int64_t most = [] {
    const char* wanted = std::getenv("OMP_NUM_THREADS");
    const long count = wanted == nullptr ? 0 : std::strtol(wanted, nullptr, 10);
    return count > 0 ? int64_t{count} : int64_t{fast_processors()};
  }();
  return most;
}
#endif

// Threads that a parallel loop started here would use.
static inline int64_t thread_count() {
#ifdef BNBX_DISPATCH
  return in_parallel() ? 1 : most_threads();
#elif defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls share(i) for each i below `shares`, each in a thread of its own if there are as many.
template <class Share>
static inline void in_threads(int shares, Share& share) {
#ifdef BNBX_DISPATCH
  dispatch_apply_f(static_cast<size_t>(shares), DISPATCH_APPLY_AUTO, &share,
                   [](void* context, size_t i) {
                     in_parallel() = true;
                     (*static_cast<Share*>(context))(static_cast<int>(i));
                     in_parallel() = false;
                   });
#else
#ifdef _OPENMP
#pragma omp parallel for num_threads(shares) schedule(static, 1)
#endif
  for (int i = 0; i < shares; ++i) share(i);
#endif
}

// Calls f(begin, end) on ranges that cover [0, n), one range a thread, none shorter than `grain`
// unless n is. f may throw std::bad_alloc, and nothing else.
template <class Function>
static inline void parallel_for(int64_t n, int64_t grain, Function&& f) {
  if (n <= 0) return;
  int64_t shares = (n + grain - 1) / grain;
  if (shares > thread_count()) shares = thread_count();
  if (shares <= 1) return f(0, n);
  const int64_t length = (n + shares - 1) / shares;
  std::atomic<bool> out_of_memory{false};  // an exception must not leave the thread
  auto share = [&](int i) {
    const int64_t begin = i * length;
    try {
      if (begin < n) f(begin, begin + length < n ? begin + length : n);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  };
  in_threads(static_cast<int>(shares), share);
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace bnbx::cpu

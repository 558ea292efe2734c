// estimate_quantiles: counts the values by their patterns (common/quantiles.h); the host reads the
// quantiles off the counts, which takes double. A thread takes neighbouring values, and counts
// equal ones together: many threads that add to one counter wait for each other.
#include "common/quantiles.h"
#include "metal/device.h"

namespace bnbx {

BNBX_CONSTANT uint kValues = 64;  // of a thread

BNBX_INLINE void count(device metal::atomic_uint* counts, uint pattern, uint values) {
  if (values == 0) return;
  metal::atomic_fetch_add_explicit(&counts[place_of(pattern)], values, metal::memory_order_relaxed);
}

}  // namespace bnbx

template <class T>
BNBX_KERNEL void count_patterns(const device T* A, constant long& n,
                                device metal::atomic_uint* counts, BNBX_PLACE) {
  const ulong first = (ulong(block) * kThreads + simd * kLanes) * kValues + lane;
  uint last = 0, run = 0;
  for (ulong i = first; i < first + kValues * kLanes && i < ulong(n); i += kLanes) {
    const uint pattern = pattern_of(element(A, i));
    if (pattern != last) {
      count(counts, last, run);
      run = 0;
    }
    last = pattern;
    ++run;
  }
  count(counts, last, run);
}

BNBX_INSTANTIATE("count_patterns_float32", count_patterns<float>)
BNBX_INSTANTIATE("count_patterns_float16", count_patterns<float16>)
BNBX_INSTANTIATE("count_patterns_bfloat16", count_patterns<bfloat16>)

// estimate_quantiles: one pass over memory that counts, no sorting, and no error in the rank but
// within one cell.
#pragma once

#include <limits>

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "avx/workspace.h"
#include "common/quantiles.h"

namespace bnbx::cpu {

template <class V, class T>
static void count_patterns(const T* A, int64_t n, int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) ++counts[pattern_of(to_float(A[i]))];
}

template <class V>
void estimate_quantiles(const void* A, DType dtype, int64_t n, double offset, int64_t num_quantiles,
                        float* out, int64_t*, Stream) {
  // Each part of the values has counts of its own.
  int64_t parts = ceil_div(n, kPatterns);
  if (parts > thread_count()) parts = thread_count();
  const int64_t share = ceil_div(n, parts);
  const auto counts = allocate<int64_t>(parts * kPatterns);
  parallel_for(parts, 1, [&](int64_t part, int64_t end) {
    for (; part < end; ++part) {
      int64_t* own = counts.get() + part * kPatterns;
      memset(own, 0, kPatterns * sizeof(int64_t));
      const int64_t begin = smaller(part * share, n);
      with_type(dtype, [&](auto type) {
        const auto* values = static_cast<const decltype(type)*>(A) + begin;
        count_patterns<V>(values, smaller(share, n - begin), own);
      });
    }
  });
  for (int64_t i = 0; i < kPatterns; ++i) {
    for (int64_t part = 1; part < parts; ++part) counts[i] += counts[part * kPatterns + i];
  }
  const bool nan = counts[kNanPattern] > 0;
  int place = 0;
  int64_t below = 0;  // values with a pattern before the one at `place`
  for (int64_t q = 0; q < num_quantiles; ++q) {
    const double rank = rank_of(q, num_quantiles, offset, n);
    while (static_cast<double>(below + counts[pattern_at(place)]) <= rank) {
      below += counts[pattern_at(place++)];
    }
    const uint32_t pattern = pattern_at(place);
    const double t = (rank - static_cast<double>(below)) / static_cast<double>(counts[pattern]);
    out[q] = nan ? std::numeric_limits<float>::quiet_NaN()
                 : value_within(pattern, t, dtype == DType::kBFloat16);
  }
}

}  // namespace bnbx::cpu

// estimate_quantiles: the values are counted by the top 16 bits of their float (sign, exponent,
// seven bits of fraction), which order as the values do; a quantile is read off the counts. One
// pass over memory, no sorting, and no error in the rank but within one cell.
#pragma once

#include <limits>

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

static constexpr int64_t kPatterns = 1 << 16;

template <class V, class T>
static void count_patterns(const T* A, int64_t n, int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) ++counts[float_bits(to_float(A[i])) >> 16];
}

// The pattern at a place in ascending order: the negative ones by falling magnitude, then the
// positive ones.
static inline uint32_t pattern_at(int64_t place) {
  const uint32_t pattern = static_cast<uint32_t>(place);
  return pattern < 0x8000u ? 0xffffu - pattern : pattern - 0x8000u;
}

// The value a share `t` of the way through the values with a pattern. A 16-bit value has no other;
// zero and infinity stay what they are.
static inline float value_within(uint32_t pattern, double t, DType dtype) {
  const float edge = bits_float(pattern << 16);
  const uint32_t exponent = pattern & 0x7f80u;
  if (dtype == DType::kBFloat16 || exponent == 0 || exponent == 0x7f80u) return edge;
  const float other = bits_float(pattern << 16 | 0xffffu);
  const double low = static_cast<double>(edge < other ? edge : other);
  const double high = static_cast<double>(edge < other ? other : edge);
  return static_cast<float>(low + t * (high - low));
}

template <class V>
void estimate_quantiles(const void* A, DType dtype, int64_t n, double offset, int64_t num_quantiles,
                        float* out, Stream) {
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
  bool nan = false;
  for (int64_t i = 0; i < kPatterns; ++i) {
    for (int64_t part = 1; part < parts; ++part) counts[i] += counts[part * kPatterns + i];
    nan = nan || ((i & 0x7fff) > 0x7f80 && counts[i] > 0);
  }
  int64_t place = 0, below = 0;  // values with a pattern before the one at `place`
  for (int64_t q = 0; q < num_quantiles; ++q) {
    const double share_below = offset + (1.0 - 2.0 * offset) * static_cast<double>(q) /
                                            static_cast<double>(num_quantiles - 1);
    const double rank = share_below * static_cast<double>(n - 1);
    while (static_cast<double>(below + counts[pattern_at(place)]) <= rank) {
      below += counts[pattern_at(place++)];
    }
    const uint32_t pattern = pattern_at(place);
    const double t = (rank - static_cast<double>(below)) / static_cast<double>(counts[pattern]);
    out[q] = nan ? std::numeric_limits<float>::quiet_NaN() : value_within(pattern, t, dtype);
  }
}

}  // namespace bnbx::cpu

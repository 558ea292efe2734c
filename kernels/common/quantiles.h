// What estimate_quantiles counts, and how a quantile is read off the counts: the values by the top
// 16 bits of their float (sign, exponent, seven bits of fraction), which order as the values do.
#pragma once

#include <cstdint>
#include <limits>

#include "common/types.h"

namespace bnbx {

BNBX_CONSTANT int kPatterns = 1 << 16;
BNBX_CONSTANT uint32_t kNanPattern = 0x7fffu;

// All NaN have one pattern: the bits that tell some of them from infinity are below the top 16.
BNBX_INLINE uint32_t pattern_of(float x) {
  const uint32_t bits = float_bits(x);
  return (bits & 0x7fffffffu) > 0x7f800000u ? kNanPattern : bits >> 16;
}

// The place of a pattern in ascending order, and back: the negative ones by falling magnitude, then
// the positive ones. NaN are last.
BNBX_INLINE int place_of(uint32_t pattern) {
  return static_cast<int>(pattern < 0x8000u ? pattern + 0x8000u : 0xffffu - pattern);
}
BNBX_INLINE uint32_t pattern_at(int place) {
  const auto pattern = static_cast<uint32_t>(place);
  return pattern < 0x8000u ? 0xffffu - pattern : pattern - 0x8000u;
}

#if !defined(BNBX_NO_DOUBLE)
// How many of n values lie below quantile `q` of `count`, which go from `offset` to 1 - offset.
BNBX_INLINE double rank_of(int64_t q, int64_t count, double offset, int64_t n) {
  const double share =
      offset + (1.0 - 2.0 * offset) * static_cast<double>(q) / static_cast<double>(count - 1);
  return share * static_cast<double>(n - 1);
}

// The value a share `t` of the way through the values with a pattern. A bfloat16 (`exact`) has no
// other; zero and infinity stay what they are.
BNBX_INLINE float value_within(uint32_t pattern, double t, bool exact) {
  const float edge = bits_float(pattern << 16);
  const uint32_t exponent = pattern & 0x7f80u;
  if (exact || exponent == 0 || exponent == 0x7f80u) return edge;
  const float other = bits_float(pattern << 16 | 0xffffu);
  const double low = static_cast<double>(edge < other ? edge : other);
  const double high = static_cast<double>(edge < other ? other : edge);
  return static_cast<float>(low + t * (high - low));
}
#endif

}  // namespace bnbx

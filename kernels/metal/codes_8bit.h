// The nearest entry of an ascending codebook of 256 or 16 entries.
#pragma once

#include "metal/device.h"

namespace bnbx {

// What lies half-way between entry i and the next one. For entries that grow without bound their
// sum, and so the boundary, may be infinite: nothing is above it.
BNBX_INLINE float bound_after(const device float* code, uint i) {
  return (code[i] + code[i + 1]) / 2.0f;
}

// The number of boundaries below x, of kEntries - 1 ascending ones; the lowest for NaN.
template <uint kEntries>
BNBX_INLINE uint nearest_entry(const threadgroup float* bounds, float x) {
  uint position = 0;
  for (uint half_of = kEntries / 2; half_of > 0; half_of /= 2) {
    if (x > bounds[position + half_of - 1]) position += half_of;
  }
  return position;
}

}  // namespace bnbx

// What the kernels of LLM.int8() share.
#pragma once

#include "common/int8.h"
#include "metal/device.h"

namespace bnbx {

// The magnitude from which a value is an outlier. Nothing is at least NaN.
BNBX_INLINE float outlier_limit(float threshold) {
  return threshold > 0.0f ? threshold : bits_float(0x7fc00000u);
}

BNBX_INLINE float without_outlier(float x, float limit) {
  return bits_float(magnitude_bits(x)) >= limit ? 0.0f : x;
}

// The code of x, by a scale that is finite.
BNBX_INLINE int8_t round_to_int8(float x, float scale) {
  return int8_t(int(metal::rint(x * scale)));
}

// The largest of a value of each thread, for each thread of the group.
BNBX_INLINE uint largest_of_group(uint x, uint lane, uint simd, threadgroup uint* of_simds) {
  x = metal::simd_max(x);
  if (lane == 0) of_simds[simd] = x;
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  for (uint i = 0; i < kSimds; ++i) x = metal::max(x, of_simds[i]);
  return x;
}

}  // namespace bnbx

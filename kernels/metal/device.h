// What the kernels of this folder have in common. A group of 256 threads is 8 SIMD-groups of 32.
#pragma once

// One rounding for each product and sum, as on every other backend, whatever the user has asked of
// PyTorch's own kernels (PYTORCH_MPS_FAST_MATH).
#if __METAL_VERSION__ >= 320
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#else
#pragma clang fp contract(off)
#endif

#include <metal_stdlib>

#include "common/codebooks.h"
#include "common/types.h"

// A kernel, as `template <...> BNBX_KERNEL void name(..., BNBX_PLACE)`, and one instance of it. The
// tests define them for their emulator.
#if !defined(BNBX_KERNEL)
#define BNBX_KERNEL [[kernel, max_total_threads_per_threadgroup(256)]]
#define BNBX_SHARED threadgroup
#define BNBX_INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;
#endif

// Where a thread is: its number in its group, the group's number, and both for SIMD-groups.
#define BNBX_PLACE                                                                          \
  uint tid [[thread_position_in_threadgroup]], uint block [[threadgroup_position_in_grid]], \
      uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]]

namespace bnbx {

BNBX_CONSTANT uint kThreads = 256;
BNBX_CONSTANT uint kLanes = 32;
BNBX_CONSTANT uint kSimds = kThreads / kLanes;

// Numbers of dtypes, as in bnbx/kernels.h.
BNBX_CONSTANT long kFloat32 = 0, kFloat16 = 1;

// The number of a thread or SIMD-group of the grid, which may be above 2^32.
BNBX_INLINE ulong thread_number(uint block, uint tid) { return ulong(block) * kThreads + tid; }
BNBX_INLINE ulong simd_number(uint block, uint simd) { return ulong(block) * kSimds + simd; }

BNBX_INLINE ulong smaller(ulong a, ulong b) { return b < a ? b : a; }

// Magnitudes as integers, which compare like them, NaN above infinity.
BNBX_INLINE uint magnitude_bits(float x) { return float_bits(x) & 0x7fffffffu; }

// The largest magnitude, given by its bits; NaN unless it is finite.
BNBX_INLINE float finite_magnitude(uint bits) {
  return bits_float(bits >= 0x7f800000u ? 0x7fc00000u : bits);
}

BNBX_INLINE bool is_nan(float x) { return magnitude_bits(x) > 0x7f800000u; }

// The inverse of a scale of either sign that stays finite.
BNBX_INLINE float inverse_of(float scale) {
  const float magnitude = bits_float(magnitude_bits(scale));
  const float inverse = 1.0f / (magnitude > kSmallestAbsmax ? magnitude : kSmallestAbsmax);
  return scale < 0.0f ? -inverse : inverse;
}

template <class T>
BNBX_INLINE T rounded_to(float x) {
  T out;
  from_float(x, &out);
  return out;
}

// Elements in a tensor's memory: structures are not copied from one kind of memory to another.
BNBX_INLINE float element(const device float* from, ulong i) { return from[i]; }
BNBX_INLINE float element(const device float16* from, ulong i) {
  return to_float(float16{from[i].bits});
}
BNBX_INLINE float element(const device bfloat16* from, ulong i) {
  return to_float(bfloat16{from[i].bits});
}
BNBX_INLINE void set_element(device float* to, ulong i, float x) { to[i] = x; }
BNBX_INLINE void set_element(device float16* to, ulong i, float x) {
  to[i].bits = rounded_to<float16>(x).bits;
}
BNBX_INLINE void set_element(device bfloat16* to, ulong i, float x) {
  to[i].bits = rounded_to<bfloat16>(x).bits;
}

// The same where the dtype is known when the kernel runs.
BNBX_INLINE float load(const device void* from, long dtype, ulong i) {
  if (dtype == kFloat32) return element(static_cast<const device float*>(from), i);
  if (dtype == kFloat16) return element(static_cast<const device float16*>(from), i);
  return element(static_cast<const device bfloat16*>(from), i);
}
BNBX_INLINE void store(device void* to, long dtype, ulong i, float x) {
  if (dtype == kFloat32) return set_element(static_cast<device float*>(to), i, x);
  if (dtype == kFloat16) return set_element(static_cast<device float16*>(to), i, x);
  set_element(static_cast<device bfloat16*>(to), i, x);
}

}  // namespace bnbx

using namespace bnbx;

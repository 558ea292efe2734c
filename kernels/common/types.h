// Element types as they lie in memory, and their conversion to float, one value at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/platform.h"

namespace bnbx {

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

#if !defined(BNBX_BIT_CASTS)
BNBX_INLINE uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

BNBX_INLINE float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
#endif

BNBX_INLINE float to_float(float x) { return x; }

BNBX_INLINE float to_float(bfloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

BNBX_INLINE float to_float(float16 x) {
#if defined(BNBX_FLOAT16_INSTRUCTIONS)
  return float16_to_float(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest < 0x0400u) {  // subnormal: a multiple of 2^-24
    const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-08f;
    return bits_float(sign | float_bits(magnitude));
  }
  return bits_float(sign | ((rest << 13) + 0x38000000u));
#endif
}

BNBX_INLINE void from_float(float x, BNBX_THREAD float* out) { *out = x; }

// Rounds to nearest, ties to even; NaN stays NaN.
BNBX_INLINE void from_float(float x, BNBX_THREAD bfloat16* out) {
#if defined(BNBX_BFLOAT16_INSTRUCTION)
  out->bits = float_to_bfloat16(x);
#else
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
#endif
}

// Rounds to nearest, ties to even; what is too large becomes infinity; NaN stays NaN.
BNBX_INLINE void from_float(float x, BNBX_THREAD float16* out) {
#if defined(BNBX_FLOAT16_INSTRUCTIONS)
  out->bits = float_to_float16(x);
#else
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u;
  const uint32_t rest = float_bits(x) & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // 65520 and more
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the last bit with 2^-24
    half = float_bits(bits_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
#endif
}

}  // namespace bnbx

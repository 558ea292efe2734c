// 4-bit codes of one type or the other, by the number of bnbx::QuantType.
#pragma once

#include "metal/device.h"

namespace bnbx {

BNBX_CONSTANT long kTypeNF4 = 0;

BNBX_INLINE float level(long quant_type, uint code) {
  return quant_type == kTypeNF4 ? kNF4.values[code] : kFP4.values[code];
}

// The code of the nearest level; of two that are equally near, and of NaN, the lower one.
BNBX_INLINE uint nearest_code(long quant_type, float x) {
  uint position = 0;
  if (quant_type == kTypeNF4) {
    for (int i = 0; i < 15; ++i) position += x > boundary(kNF4, i) ? 1 : 0;
    return kNF4.code_at[position];
  }
  for (int i = 0; i < 15; ++i) position += x > boundary(kFP4, i) ? 1 : 0;
  return kFP4.code_at[position];
}

// Byte number i of the codes of n values at their scale's inverse; codes of NaN scales are 0.
template <class T>
BNBX_INLINE uchar encode_pair(const device T* A, ulong n, ulong i, float inverse, long type) {
  if (is_nan(inverse)) return 0;
  const float first = element(A, 2 * i);
  const float second = 2 * i + 1 < n ? element(A, 2 * i + 1) : 0.0f;
  return uchar(nearest_code(type, first * inverse) << 4 | nearest_code(type, second * inverse));
}

// Code number i.
BNBX_INLINE uint code_at(const device uchar* packed, ulong i) {
  return packed[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
}

}  // namespace bnbx

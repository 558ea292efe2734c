// pack and unpack (see device.h) where the hardware has no such instruction.
#pragma once

#include "common/types.h"

namespace bnbx::gpu {

template <class T>
BNBX_INLINE uint32_t pack_by_bits(float low, float high, T) {
  T first, second;
  from_float(low, &first);
  from_float(high, &second);
  return first.bits | static_cast<uint32_t>(second.bits) << 16;
}

template <class T>
BNBX_INLINE void unpack_by_bits(uint32_t pair, float* low, float* high, T) {
  *low = to_float(T{static_cast<uint16_t>(pair)});
  *high = to_float(T{static_cast<uint16_t>(pair >> 16)});
}

}  // namespace bnbx::gpu

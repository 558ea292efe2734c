// pack (see device.h) where the hardware has no such instruction.
#pragma once

#include "common/types.h"

namespace bnbx::gpu {

template <class T>
__device__ inline uint32_t pack_by_rounding(float low, float high, T) {
  T first, second;
  from_float(low, &first);
  from_float(high, &second);
  return first.bits | static_cast<uint32_t>(second.bits) << 16;
}

}  // namespace bnbx::gpu

// A bias as the epilogues read it.
#pragma once

#include "cuda/device.h"

namespace bnbx::gpu {

__device__ inline float bias_at(const Bias& bias, int64_t n) {
  if (bias.data == nullptr) return 0.0f;
  switch (bias.dtype) {
    case DType::kFloat32: return static_cast<const float*>(bias.data)[n];
    case DType::kFloat16: return to_float(static_cast<const float16*>(bias.data)[n]);
    case DType::kBFloat16: return to_float(static_cast<const bfloat16*>(bias.data)[n]);
  }
  return 0.0f;
}

}  // namespace bnbx::gpu

// A bias as the epilogues read it.
#pragma once

#include "cuda/device.h"

namespace bnbx::gpu {

// The bias of columns n to n + kCount - 1, of N; beyond them the last again. Zeros if there is
// none.
template <int kCount>
__device__ inline void load_bias(const Bias& bias, int64_t n, int64_t N, float (&out)[kCount]) {
  const auto load = [&](const auto* values) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = to_float(values[n + i < N ? n + i : N - 1]);
  };
#pragma unroll
  for (float& value : out) value = 0.0f;
  if (bias.data == nullptr) return;
  switch (bias.dtype) {
    case DType::kFloat32: return load(static_cast<const float*>(bias.data));
    case DType::kFloat16: return load(static_cast<const float16*>(bias.data));
    case DType::kBFloat16: return load(static_cast<const bfloat16*>(bias.data));
  }
}

}  // namespace bnbx::gpu

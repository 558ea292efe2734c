// Products of codes as floats: what int8_scaled_mm, int8_mixed_scaled_mm and int8_linear share.
#pragma once

#include "cuda/device.h"

namespace bnbx::gpu {

struct ScaledProduct {
  const int8_t* CA;
  const int8_t* CB;
  int64_t M, N, K;
  const float* row_stats;
  const float* col_stats;
  Bias bias;
  void* out;
  DType dtype;
  // Columns of A, which has out's dtype, that are added; see Outliers.
  const void* A;
  const uint8_t* flags;
  const int64_t* columns;
  int64_t extent;
};

void multiply_scaled(const ScaledProduct& product, Stream stream);

}  // namespace bnbx::gpu

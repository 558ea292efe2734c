// int8_mixed_scaled_mm: int8_scaled_mm plus the columns of a list.
#include "cuda/int8_scaled_mm.h"

namespace bnbx {

void int8_mixed_scaled_mm(const void* A, DType dtype, const int8_t* CA, const int8_t* CB, int64_t M,
                          int64_t N, int64_t K, const float* SCA, const float* SCB,
                          const int64_t* outlier_cols, int64_t outlier_count, Bias bias, void* out,
                          Stream stream) {
  gpu::multiply_scaled(
      {CA, CB, M, N, K, SCA, SCB, bias, out, dtype, A, nullptr, outlier_cols, outlier_count},
      stream);
}

}  // namespace bnbx

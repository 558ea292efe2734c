// int8_linear: quantization, then the product, which finds the columns held back by their flags.
#include "cuda/int8_scaled_mm.h"

namespace bnbx {

void int8_linear(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const int8_t* CB,
                 const float* SCB, float threshold, Bias bias, int8_t* codes, float* stats,
                 uint8_t* outliers, void* out, Stream stream) {
  const bool decompose = threshold > 0.0f;
  uint8_t* flags = decompose ? outliers : nullptr;
  int8_vectorwise_quant(A, dtype, M, K, threshold, codes, stats, flags, stream);
  gpu::multiply_scaled(
      {codes, CB, M, N, K, stats, SCB, bias, out, dtype, A, flags, nullptr, decompose ? K : 0},
      stream);
}

}  // namespace bnbx

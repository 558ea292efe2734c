// gemm_4bit_grouped and gemm_4bit_grouped_transposed: the kernels for one weight, whose blocks find
// their expert by themselves.
#include "cuda/launch_4bit.h"

namespace bnbx {

void gemm_4bit_grouped(const void* A, DType dtype, int64_t M, const int64_t* ends, int64_t E,
                       int64_t N, int64_t K, const uint8_t* B, const BlockScales& scales,
                       QuantType quant_type, const void* bias, void* out, Stream stream) {
  const auto p =
      gpu::make_product(A, dtype, M, ends, E, N, K, B, scales, quant_type, bias, out, false);
  gpu::multiply_4bit(p, dtype, stream);
}

void gemm_4bit_grouped_transposed(const void* A, DType dtype, int64_t M, const int64_t* ends,
                                  int64_t E, int64_t N, int64_t K, const uint8_t* B,
                                  const BlockScales& scales, QuantType quant_type, void* out,
                                  Stream stream) {
  const auto p =
      gpu::make_product(A, dtype, M, ends, E, N, K, B, scales, quant_type, nullptr, out, true);
  gpu::multiply_4bit_transposed(p, dtype, stream);
}

}  // namespace bnbx

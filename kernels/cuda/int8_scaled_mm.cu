// int8_scaled_mm: the product with the epilogue that makes floats of its sums.
#include "cuda/int8_dispatch.h"
#include "cuda/int8_epilogues.h"
#include "cuda/int8_scaled_mm.h"

namespace bnbx {
namespace gpu {

void multiply_scaled(const ScaledProduct& p, Stream stream) {
  const Int8Operands operands(p.CA, p.CB, p.M, p.N, p.K);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const bool aligned = p.N * sizeof(T) % 16 == 0 && is_aligned(p.out, 16);
    const Outliers<T> outliers{static_cast<const T*>(p.A), p.flags, p.columns, p.extent};
    const Scale<T> epilogue{p.row_stats, p.col_stats, p.bias, static_cast<T*>(p.out),
                            aligned,     outliers};
    multiply(operands, epilogue, stream);
  });
}

}  // namespace gpu

void int8_scaled_mm(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                    const float* row_stats, const float* col_stats, Bias bias, void* out,
                    DType dtype, Stream stream) {
  gpu::multiply_scaled(
      {A, B, M, N, K, row_stats, col_stats, bias, out, dtype, nullptr, nullptr, nullptr, 0},
      stream);
}

}  // namespace bnbx

// int8_linear_matmul: the sums themselves.
#include "cuda/int8_dispatch.h"
#include "cuda/int8_epilogues.h"

namespace bnbx {

void int8_linear_matmul(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                        int32_t* out, Stream stream) {
  const gpu::StoreSums epilogue{out, N % 4 == 0 && gpu::is_aligned(out, 16)};
  gpu::multiply(gpu::Int8Operands(A, B, M, N, K), epilogue, stream);
}

}  // namespace bnbx

// Operations whose kernels are not written yet. Delete each as it gets its own file.
#include <stdexcept>

#include "bnbx/kernels.h"

namespace bnbx {

void gemm_4bit(const void*, DType, int64_t, int64_t, int64_t, const uint8_t*, const BlockScales&,
               QuantType, const void*, void*, Stream) {
  throw std::logic_error("gemm_4bit is missing");
}

void gemm_4bit_transposed(const void*, DType, int64_t, int64_t, int64_t, const uint8_t*,
                          const BlockScales&, QuantType, void*, Stream) {
  throw std::logic_error("gemm_4bit_transposed is missing");
}

void gemm_4bit_grouped(const void*, DType, const int64_t*, int64_t, int64_t, int64_t,
                       const uint8_t*, const BlockScales&, QuantType, const void*, void*, Stream) {
  throw std::logic_error("gemm_4bit_grouped is missing");
}

void gemm_4bit_grouped_transposed(const void*, DType, const int64_t*, int64_t, int64_t, int64_t,
                                  const uint8_t*, const BlockScales&, QuantType, void*, Stream) {
  throw std::logic_error("gemm_4bit_grouped_transposed is missing");
}

}  // namespace bnbx

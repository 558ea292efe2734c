// Operations whose kernels are not written yet. Delete each as it gets its own file.
#include <stdexcept>

#include "bnbx/kernels.h"

namespace bnbx {

void int8_vectorwise_quant(const void*, DType, int64_t, int64_t, float, int8_t*, float*, uint8_t*,
                           Stream) {
  throw std::logic_error("int8_vectorwise_quant is missing");
}

void int8_vectorwise_dequant(const int8_t*, const float*, int64_t, int64_t, float*, Stream) {
  throw std::logic_error("int8_vectorwise_dequant is missing");
}

void int8_double_quant(const void*, DType, int64_t, int64_t, float, int8_t*, int8_t*, float*,
                       float*, uint8_t*, Stream) {
  throw std::logic_error("int8_double_quant is missing");
}

void int8_linear_matmul(const int8_t*, const int8_t*, int64_t, int64_t, int64_t, int32_t*, Stream) {
  throw std::logic_error("int8_linear_matmul is missing");
}

void int8_mm_dequant(const int32_t*, const float*, const float*, int64_t, int64_t, Bias, void*,
                     DType, Stream) {
  throw std::logic_error("int8_mm_dequant is missing");
}

void int8_scaled_mm(const int8_t*, const int8_t*, int64_t, int64_t, int64_t, const float*,
                    const float*, Bias, void*, DType, Stream) {
  throw std::logic_error("int8_scaled_mm is missing");
}

void int8_mixed_scaled_mm(const void*, DType, const int8_t*, const int8_t*, int64_t, int64_t,
                          int64_t, const float*, const float*, const int64_t*, int64_t, Bias, void*,
                          Stream) {
  throw std::logic_error("int8_mixed_scaled_mm is missing");
}

void int8_linear(const void*, DType, int64_t, int64_t, int64_t, const int8_t*, const float*, float,
                 Bias, int8_t*, float*, uint8_t*, void*, Stream) {
  throw std::logic_error("int8_linear is missing");
}

}  // namespace bnbx

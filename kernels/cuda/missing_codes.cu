// Operations whose kernels are not written yet. Delete each as it gets its own file.
#include <stdexcept>

#include "bnbx/kernels.h"

namespace bnbx {

void quantize_4bit(const void*, DType, int64_t, int64_t, QuantType, uint8_t*, float*, Stream) {
  throw std::logic_error("quantize_4bit is missing");
}

void scale_search_4bit(const void*, DType, int64_t, const float*, int64_t, const float*, int64_t,
                       int64_t, int64_t, QuantType, float*, Stream) {
  throw std::logic_error("scale_search_4bit is missing");
}

void encode_4bit(const void*, DType, int64_t, const float*, int64_t, QuantType, uint8_t*, Stream) {
  throw std::logic_error("encode_4bit is missing");
}

void dequantize_4bit(const uint8_t*, const float*, int64_t, int64_t, QuantType, void*, DType,
                     Stream) {
  throw std::logic_error("dequantize_4bit is missing");
}

void quantize_blockwise(const void*, DType, int64_t, const float*, int64_t, uint8_t*, float*,
                        Stream) {
  throw std::logic_error("quantize_blockwise is missing");
}

void dequantize_blockwise(const uint8_t*, const float*, int64_t, const float*, int64_t, void*,
                          DType, Stream) {
  throw std::logic_error("dequantize_blockwise is missing");
}

void estimate_quantiles(const void*, DType, int64_t, double, int64_t, float*, Stream) {
  throw std::logic_error("estimate_quantiles is missing");
}

}  // namespace bnbx

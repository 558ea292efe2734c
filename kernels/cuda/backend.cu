// What the backend says about itself.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "bnbx/kernels.h"

namespace bnbx {

static std::string toolkit() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::vector<std::string> operations() {
  return {"quantize_4bit",         "scale_search_4bit",       "encode_4bit",
          "dequantize_4bit",       "dequantize_4bit.out",     "gemm_4bit",
          "gemm_4bit_transposed",  "gemm_4bit_grouped",       "gemm_4bit_grouped_transposed",
          "quantize_blockwise",    "dequantize_blockwise",    "dequantize_blockwise.out",
          "int8_vectorwise_quant", "int8_vectorwise_dequant", "int8_double_quant",
          "int8_linear_matmul",    "int8_linear_matmul.out",  "int8_mm_dequant",
          "int8_scaled_mm",        "int8_mixed_scaled_mm",    "int8_linear",
          "estimate_quantiles",    "optimizer_update_32bit",  "optimizer_update_blockwise"};
}

std::string isa() { return "cuda " + toolkit(); }

std::vector<std::string> available_isas() { return {isa()}; }

void select_isa(const std::string& name) {
  if (name != isa()) throw std::invalid_argument("this module is for " + isa() + ", got " + name);
}

}  // namespace bnbx

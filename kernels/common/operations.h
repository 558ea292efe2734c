// The operations of the interface, for the backends that implement all of them.
#pragma once

#include <string>
#include <vector>

namespace bnbx {

inline std::vector<std::string> every_operation() {
  return {"quantize_4bit",         "scale_search_4bit",       "encode_4bit",
          "dequantize_4bit",       "dequantize_4bit.out",     "gemm_4bit",
          "gemm_4bit_transposed",  "gemm_4bit_grouped",       "gemm_4bit_grouped_transposed",
          "quantize_blockwise",    "dequantize_blockwise",    "dequantize_blockwise.out",
          "int8_vectorwise_quant", "int8_vectorwise_dequant", "int8_double_quant",
          "int8_linear_matmul",    "int8_linear_matmul.out",  "int8_mm_dequant",
          "int8_scaled_mm",        "int8_mixed_scaled_mm",    "int8_linear",
          "estimate_quantiles",    "optimizer_update_32bit",  "optimizer_update_blockwise"};
}

}  // namespace bnbx

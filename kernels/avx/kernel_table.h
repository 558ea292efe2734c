// The kernels of one instruction set, as a table that the dispatcher can point to.
#pragma once

#include "avx/product_4bit.h"
#include "bnbx/kernels.h"

namespace bnbx {

// optimizer_update_blockwise for one number of bits.
using BlockwiseUpdate = void (*)(OptimizerRule rule, const ParameterUpdate* parameters,
                                 int64_t count, const float* qmap1, const float* qmap2,
                                 const Hyperparameters& hyperparameters, Stream stream);

struct KernelTable {
  decltype(&bnbx::quantize_4bit) quantize_4bit;
  decltype(&bnbx::scale_search_4bit) scale_search_4bit;
  decltype(&bnbx::encode_4bit) encode_4bit;
  decltype(&bnbx::dequantize_4bit) dequantize_4bit;
  void (*gemm_4bit)(const cpu::Product4&);
  void (*gemm_4bit_transposed)(const cpu::Product4&);
  decltype(&bnbx::quantize_blockwise) quantize_blockwise;
  decltype(&bnbx::dequantize_blockwise) dequantize_blockwise;
  decltype(&bnbx::int8_vectorwise_quant) int8_vectorwise_quant;
  decltype(&bnbx::int8_vectorwise_dequant) int8_vectorwise_dequant;
  decltype(&bnbx::int8_double_quant) int8_double_quant;
  decltype(&bnbx::int8_linear_matmul) int8_linear_matmul;
  decltype(&bnbx::int8_mm_dequant) int8_mm_dequant;
  decltype(&bnbx::int8_scaled_mm) int8_scaled_mm;
  decltype(&bnbx::int8_mixed_scaled_mm) int8_mixed_scaled_mm;
  decltype(&bnbx::int8_linear) int8_linear;
  decltype(&bnbx::estimate_quantiles) estimate_quantiles;
  decltype(&bnbx::optimizer_update_32bit) optimizer_update_32bit;
  BlockwiseUpdate optimizer_update_8bit_blockwise;
  BlockwiseUpdate optimizer_update_4bit_blockwise;
};

namespace scalar {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512vnni {
extern const KernelTable kTable;
}
namespace amx {
extern const KernelTable kTable;
}
namespace neon {
extern const KernelTable kTable;
}
namespace neon_dotprod {
extern const KernelTable kTable;
}
namespace neon_mmla {
extern const KernelTable kTable;
}

}  // namespace bnbx

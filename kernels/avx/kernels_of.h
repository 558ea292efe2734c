// Every kernel, as templates over a vector vocabulary, and the table of them for one vocabulary.
#pragma once

#include "avx/dequantize_4bit.h"
#include "avx/dequantize_blockwise.h"
#include "avx/encode_4bit.h"
#include "avx/estimate_quantiles.h"
#include "avx/gemm_4bit.h"
#include "avx/gemm_4bit_transposed.h"
#include "avx/int8_product.h"
#include "avx/int8_vectorwise_quant.h"
#include "avx/kernel_table.h"
#include "avx/optimizer_update.h"
#include "avx/quantize_4bit.h"
#include "avx/quantize_blockwise.h"
#include "avx/scale_search_4bit.h"

namespace bnbx::cpu {

// Every kernel of the vocabulary V.
template <class V>
static constexpr KernelTable table_of() {
  return {
      &quantize_4bit<V>,
      &scale_search_4bit<V>,
      &encode_4bit<V>,
      &dequantize_4bit<V>,
      &gemm_4bit<V>,
      &gemm_4bit_transposed<V>,
      &quantize_blockwise<V>,
      &dequantize_blockwise<V>,
      &int8_vectorwise_quant<V>,
      &int8_vectorwise_dequant<V>,
      &int8_double_quant<V>,
      &int8_linear_matmul<V>,
      &int8_mm_dequant<V>,
      &int8_scaled_mm<V>,
      &int8_mixed_scaled_mm<V>,
      &int8_linear<V>,
      &estimate_quantiles<V>,
      &optimizer_update_32bit<V>,
      &optimizer_update_8bit_blockwise<V>,
      &optimizer_update_4bit_blockwise<V>,
  };
}

}  // namespace bnbx::cpu

// The kernels of AVX-512, with those of its own.
#pragma once

#include "avx/dynamic_encoder_avx512.h"
#include "avx/gemv_4bit_int16.h"
#include "avx/kernels_of.h"
#include "avx/quantize_4bit_words.h"

namespace bnbx::cpu {

// Up to so many rows decoding again for every four of them is faster than decoding to float32.
static constexpr int64_t kGemvMost = 64;

template <class V>
void gemm_4bit_avx512(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const uint8_t* B,
                      const BlockScales& scales, QuantType quant_type, const void* bias, void* out,
                      Stream stream) {
  if (gemv_4bit_int16<V>({A, dtype, M, N, K, B, scales, quant_type, bias, out}, kGemvMost)) return;
  gemm_4bit<V>(A, dtype, M, N, K, B, scales, quant_type, bias, out, stream);
}

template <class V>
static constexpr KernelTable avx512_table_of() {
  KernelTable table = table_of<V>();
  table.quantize_4bit = &quantize_4bit_words<V>;
  table.gemm_4bit = &gemm_4bit_avx512<V>;
  table.optimizer_update_8bit_blockwise = &optimizer_update_8bit_blockwise<V, DynamicEncoder<V>>;
  return table;
}

}  // namespace bnbx::cpu

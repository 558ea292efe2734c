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
void gemm_4bit_avx512(const Product4& p) {
  if (!gemv_4bit_int16<V>(p, kGemvMost)) gemm_4bit<V>(p);
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

// Decoding 4-bit codes to scaled bf16 values.
#pragma once

#include "avx/decode_words.h"

namespace bnbx::cpu {

// The 16 values times a scale, rounded to bf16, twice.
static inline __m512i bf16_table(__m512 values, float scale) {
  const __m512 scaled = _mm512_mul_ps(values, _mm512_set1_ps(scale));
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(scaled, scaled));
}

}  // namespace bnbx::cpu

// Decoding 4-bit codes to 16-bit values with permutes, 64 codes (32 bytes, a "group") at a time.
//
// The bytes of a group are widened to words; the low five bits of a word index a table of 32
// entries, which holds the 16 values twice, so the low nibble needs no mask, and the high nibble
// one shift. The values come out split into those at even and those at odd positions. A product
// does not care, as long as the other side is split alike.
#pragma once

#include <immintrin.h>

#include "avx/groups_4bit.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

static inline __m512i codes_of(const uint8_t* packed) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed)));
}

static inline __m512i even_values(__m512i codes, __m512i table) {
  return _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
}

static inline __m512i odd_values(__m512i codes, __m512i table) {
  return _mm512_permutexvar_epi16(codes, table);
}

// Splits 64 16-bit values into those at even and those at odd positions.
static inline void split(const void* values, __m512i* even, __m512i* odd) {
  const __m512i low = _mm512_loadu_si512(values);
  const __m512i high = _mm512_loadu_si512(static_cast<const uint16_t*>(values) + 32);
  // Each 32-bit lane holds an even (low half) and an odd (high half) value.
  const __m512i even_low = _mm512_and_si512(low, _mm512_set1_epi32(0xffff));
  const __m512i even_high = _mm512_and_si512(high, _mm512_set1_epi32(0xffff));
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  *even = _mm512_permutexvar_epi64(order, _mm512_packus_epi32(even_low, even_high));
  *odd = _mm512_permutexvar_epi64(
      order, _mm512_packus_epi32(_mm512_srli_epi32(low, 16), _mm512_srli_epi32(high, 16)));
}

}  // namespace bnbx::cpu

// A table of 256 floats on AVX-512. The entries of the dynamic maps (Dettmers et al. 2022, 8-bit
// optimizers, section 2.2) are computed: a gather would take longer, and hold up everything else.
//
// With a the distance from the entry 0, 2^o its highest bit and n = 18 a + 9 - 16 * 2^o, the entry
// is n * 10^(o - e) / 2^(o + 1), the middle of a part of a decade. n is an integer, and the factor
// has two parts, so that the product is rounded once: to the bits of the table, which is made sure
// of.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bnbx {
namespace avx512 {

struct Table256 {
  const float* entries;
  bool dynamic;              // whether the rest holds
  __m512i zero;              // index of the entry 0, or of what would come before the first
  __m512 offset;             // 9 - 16 * 2^o, by the number of leading zeros of a, modulo 16
  __m512 factor, remainder;  // what n is multiplied with, likewise
};

static inline __m512 dynamic_entry(const Table256& table, __m512i index) {
  const __m512i distance = _mm512_sub_epi32(index, table.zero);
  const __m512i a = _mm512_abs_epi32(distance);
  const __m512i zeros = _mm512_lzcnt_epi32(a);
  const __m512 offset = _mm512_permutexvar_ps(zeros, table.offset);
  const __m512 n = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(18.0f), offset);
  const __m512 low = _mm512_mul_ps(n, _mm512_permutexvar_ps(zeros, table.remainder));
  const __m512 entry = _mm512_fmadd_ps(n, _mm512_permutexvar_ps(zeros, table.factor), low);
  const __m512i sign = _mm512_and_si512(distance, _mm512_set1_epi32(INT32_MIN));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(entry), sign));
}

// The table of a dynamic map, if `entries` are one: signed, with the entry 0 in the middle, or not.
static inline Table256 dynamic_table(const float* entries, bool is_signed) {
  const int last = is_signed ? 7 : 8;  // the octave of the entry 1, which is the end of all decades
  float offset[16] = {}, factor[16] = {}, remainder[16] = {};
  double exact = 0.5;
  for (int i = 0; i < last; ++i) exact /= 10.0;
  for (int octave = 0; octave <= last; ++octave, exact *= 5.0) {
    if (octave == last) exact = 1.0 / (2 * (1 << octave) + 9);
    if (octave == 0 && !is_signed) continue;  // of the entry 0 alone
    const int zeros = (31 - octave) % 16;
    offset[zeros] = static_cast<float>(9 - 16 * (1 << octave));
    factor[zeros] = static_cast<float>(exact);
    remainder[zeros] = static_cast<float>(exact - static_cast<double>(factor[zeros]));
  }
  Table256 table{entries,
                 true,
                 _mm512_set1_epi32(is_signed ? 127 : -1),
                 _mm512_loadu_ps(offset),
                 _mm512_loadu_ps(factor),
                 _mm512_loadu_ps(remainder)};
  const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  float computed[256];
  for (int i = 0; i < 256; i += 16) {
    const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(i), count);
    _mm512_storeu_ps(computed + i, dynamic_entry(table, index));
  }
  table.dynamic = memcmp(computed, entries, sizeof(computed)) == 0;
  return table;
}

static inline Table256 table256(const float* entries) {
  return dynamic_table(entries, entries[0] < 0.0f);
}

}  // namespace avx512
}  // namespace bnbx

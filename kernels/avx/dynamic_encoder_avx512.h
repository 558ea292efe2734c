// Finding the nearest entry of a dynamic map (Dettmers et al. 2022, 8-bit optimizers, section 2.2)
// by arithmetic, on AVX-512: two thirds of the time of the table of cells.
//
// The entries of a decade are evenly spaced, so within one the code is a linear function of the
// magnitude, rounded down. The exponent tells the decade, if need be after a comparison with the
// one decade that begins in its octave. Magnitudes within 16 units in the last place of the middle
// of two entries may get the code of either.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "avx/quantize_blockwise.h"
#include "common/types.h"

namespace bnbx::cpu {

template <class V>
class DynamicEncoder {
 public:
  explicit DynamicEncoder(const float* code) : zero_(code[0] < 0.0f ? 127 : 0) {
    set_decades(code);
    dynamic_ = is_right(code);
    if (!dynamic_) cells_.set(code);
  }

  BNBX_MEMBER void encode(const float* A, float factor, int64_t n, uint8_t* out) const {
    if (!dynamic_) return cells_.encode(A, factor, n, out);
    encode_dynamic(A, factor, n, out);
  }

 private:
  // Decade 0 is the entry 0 alone and the last one the entry 1.0.
  static constexpr int kLast = 8;

  struct Decades {
    // By the exponent, modulo 32: where in its octave a decade begins; the number of the decade
    // before that is its last four bits.
    __m512 starts[2];
    __m512 slope, intercept, limit;  // by the decade: of its linear function
  };

  void encode_dynamic(const float* A, float factor, int64_t n, uint8_t* out) const {
    return zero_ != 0 ? encode_all<true>(decades_, A, factor, n, out)
                      : encode_all<false>(decades_, A, factor, n, out);
  }

  // Takes a copy of the decades: stores could change what is in memory.
  template <bool kSigned>
  static void encode_all(const Decades decades, const float* A, float factor, int64_t n,
                         uint8_t* out) {
    const __m512 scale = _mm512_set1_ps(factor);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) encode64<kSigned>(decades, A + i, scale, out + i);
    if (i < n) {
      float values[64] = {};
      uint8_t codes[64];
      memcpy(values, A + i, (n - i) * sizeof(float));
      encode64<kSigned>(decades, values, scale, codes);
      memcpy(out + i, codes, n - i);
    }
  }

  // The entries of a signed map are counted from the largest one down while they become bytes,
  // which then hold all but the missing entry -1.0: that one saturates.
  template <bool kSigned>
  static void encode64(const Decades& decades, const float* A, __m512 scale, uint8_t* out) {
    const auto entries = [&](int64_t i) {
      return nearest<kSigned>(decades, _mm512_mul_ps(_mm512_loadu_ps(A + i), scale));
    };
    const __m512i a = entries(0), b = entries(16), c = entries(32), d = entries(48);
    __m512i bytes;  // within each quarter
    if (kSigned) {
      bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
      bytes = _mm512_xor_si512(bytes, _mm512_set1_epi8(127));
    } else {
      bytes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
    }
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, bytes));
  }

  // Entries nearest to x, as seen from the entry 0; negative ones for positive values if the map
  // is a signed one.
  template <bool kSigned>
  static __m512i nearest(const Decades& decades, __m512 x) {
    // What is smaller than 2^-30 belongs to the entry 0. The range is the larger magnitude.
    const __m512 smallest = _mm512_set1_ps(0x1p-30f);
    const __m512 magnitude =
        kSigned ? _mm512_range_ps(x, smallest, 0b1011) : _mm512_max_ps(x, smallest);
    const __m512i octave = _mm512_srli_epi32(_mm512_castps_si512(magnitude), 23);
    const __m512 start = _mm512_permutex2var_ps(decades.starts[0], octave, decades.starts[1]);
    const __m512i first = _mm512_castps_si512(start);  // of an index the last four bits count
    const __m512i decade = _mm512_mask_add_epi32(
        first, _mm512_cmp_ps_mask(magnitude, start, _CMP_GT_OQ), first, _mm512_set1_epi32(1));
    const __m512 linear = _mm512_fmadd_ps(magnitude, _mm512_permutexvar_ps(decade, decades.slope),
                                          _mm512_permutexvar_ps(decade, decades.intercept));
    const __m512 entry = _mm512_min_ps(linear, _mm512_permutexvar_ps(decade, decades.limit));
    if (!kSigned) return _mm512_cvttps_epi32(entry);
    const __m512 positive = _mm512_andnot_ps(x, _mm512_set1_ps(-0.0f));
    return _mm512_cvttps_epi32(_mm512_or_ps(entry, positive));
  }

  // Entries are counted from the entry 0.
  void set_decades(const float* code) {
    float starts[32], slope[16] = {}, intercept[16] = {}, limit[16] = {};
    int entry = 1, firsts[kLast + 1] = {};
    for (int decade = 1; decade < kLast; ++decade) {
      const int entries = (zero_ != 0 ? 1 : 2) << (decade - 1);
      const double begin = std::pow(10.0, decade - kLast), width = 9.0 * begin / entries;
      slope[decade] = static_cast<float>(1.0 / width);
      intercept[decade] = static_cast<float>(entry - begin / width);
      firsts[decade] = entry;
      entry += entries;
      limit[decade] = static_cast<float>(entry) - 0.25f;
    }
    firsts[kLast] = entry;
    intercept[kLast] = limit[kLast] = static_cast<float>(entry);
    // Larger magnitudes are in the decade, or in a later one.
    const auto start_of = [&](int decade) {
      const float* at = code + zero_ + firsts[decade];
      return (at[-1] + at[0]) / 2.0f;
    };
    // The nearest float that ends with the number of a decade.
    const auto mark = [](float start, int decade) {
      const uint32_t number = static_cast<uint32_t>(decade);
      return bits_float(((float_bits(start) + 8 - number) & ~15u) | number);
    };
    for (int i = 0; i < 32; ++i) starts[i] = mark(3.0e38f, 0);
    for (int exponent = -30; exponent <= 0; ++exponent) {
      const int octave = (127 + exponent) % 32;
      int decade = 0;
      while (decade < kLast && start_of(decade + 1) < std::ldexp(1.0f, exponent)) ++decade;
      starts[octave] = mark(decade < kLast ? start_of(decade + 1) : 3.0e38f, decade);
    }
    decades_ = {{_mm512_loadu_ps(starts), _mm512_loadu_ps(starts + 16)},
                _mm512_loadu_ps(slope),
                _mm512_loadu_ps(intercept),
                _mm512_loadu_ps(limit)};
  }

  // Whether the map is a dynamic one: every entry and both sides of every middle get their codes.
  bool is_right(const float* code) const {
    for (int i = 0; i < 256; ++i) {
      if (index_of(code[i]) != i) return false;
      if (i == 255) break;
      const float middle = (code[i] + code[i + 1]) / 2.0f, ulps = std::fabs(middle) * 0x1p-19f;
      if (index_of(middle - ulps) != i || index_of(middle + ulps) != i + 1) return false;
    }
    return true;
  }

  int index_of(float x) const {
    uint8_t index;
    encode_dynamic(&x, 1.0f, 1, &index);
    return index;
  }

  Decades decades_;
  int zero_;  // index of the entry 0
  bool dynamic_;
  Encoder8<V> cells_;
};

}  // namespace bnbx::cpu

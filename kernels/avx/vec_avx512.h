// The vector vocabulary on AVX-512 F, BW, DQ and VL. vec_scalar.h says what each word means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/types.h"

namespace bnbx {
namespace avx512 {

struct F32 {
  __m512 v;
  F32() = default;
  F32(__m512 x) : v(x) {}  // NOLINT(google-explicit-constructor)
  explicit F32(float x) : v(_mm512_set1_ps(x)) {}
};

struct I32 {
  __m512i v;
  I32() = default;
  I32(__m512i x) : v(x) {}  // NOLINT(google-explicit-constructor)
  explicit I32(int32_t x) : v(_mm512_set1_epi32(x)) {}
};

static inline F32 operator+(F32 a, F32 b) { return _mm512_add_ps(a.v, b.v); }
static inline F32 operator-(F32 a, F32 b) { return _mm512_sub_ps(a.v, b.v); }
static inline F32 operator*(F32 a, F32 b) { return _mm512_mul_ps(a.v, b.v); }
static inline F32 operator/(F32 a, F32 b) { return _mm512_div_ps(a.v, b.v); }
static inline I32 operator+(I32 a, I32 b) { return _mm512_add_epi32(a.v, b.v); }
static inline I32 operator-(I32 a, I32 b) { return _mm512_sub_epi32(a.v, b.v); }
static inline I32 operator|(I32 a, I32 b) { return _mm512_or_si512(a.v, b.v); }
static inline I32 operator&(I32 a, I32 b) { return _mm512_and_si512(a.v, b.v); }
static inline I32 operator^(I32 a, I32 b) { return _mm512_xor_si512(a.v, b.v); }
static inline I32 operator*(I32 a, I32 b) { return _mm512_mullo_epi32(a.v, b.v); }
template <int kShift>
static inline I32 shift_right_logical(I32 a) {
  return _mm512_srli_epi32(a.v, kShift);
}
static inline F32 sqrt(F32 a) { return _mm512_sqrt_ps(a.v); }
static inline F32 sign(F32 a) {
  const __mmask16 signed_lanes = _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_OQ);
  const __m512 bit = _mm512_and_ps(a.v, _mm512_set1_ps(-0.0f));
  return _mm512_mask_or_ps(a.v, signed_lanes, bit, _mm512_set1_ps(1.0f));
}

// Floats whose products are added without rounding them first, in one instruction.
struct Fused : F32 {
  Fused() = default;
  Fused(F32 x) : F32(x) {}  // NOLINT(google-explicit-constructor)
  explicit Fused(float x) : F32(x) {}
};
struct Product {
  F32 a, b;
  operator Fused() const { return F32(_mm512_mul_ps(a.v, b.v)); }  // NOLINT(*-explicit-*)
};

static inline Product operator*(Fused a, Fused b) { return {a, b}; }
static inline Product operator*(F32 a, Fused b) { return {a, b}; }
static inline Product operator*(Product a, Fused b) { return {Fused(a), b}; }
static inline F32 operator+(Fused a, Product b) { return _mm512_fmadd_ps(b.a.v, b.b.v, a.v); }
static inline F32 operator+(Product a, Fused b) { return b + a; }
static inline F32 operator+(Product a, Product b) { return Fused(b) + a; }
static inline F32 operator-(Product a, Product b) {
  return _mm512_fnmadd_ps(b.a.v, b.b.v, Fused(a).v);
}

// `Isa` only gives the functions a name of their own for each file that is compiled with other
// flags.
template <class Isa>
struct Vec {
  using F32 = avx512::F32;
  using Fused = avx512::Fused;
  using I32 = avx512::I32;
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = 4;

  struct Table16 {
    __m512 entries;
  };
  static Table16 table16(const float* entries) { return {_mm512_loadu_ps(entries)}; }
  static F32 lookup(const Table16& table, I32 index) {
    return _mm512_permutexvar_ps(index.v, table.entries);
  }

  static F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static F32 load(const bfloat16* p) {
    const __m512i wide =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F32 load(const float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
  static void store(bfloat16* p, F32 a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i top = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(top, 16)));
  }
  static void store(float16* p, F32 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static I32 load_nibbles(const uint8_t* p) {
    const __m128i bytes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i both = _mm_or_si128(_mm_srli_epi16(bytes, 4), _mm_slli_epi16(bytes, 8));
    return _mm512_cvtepu8_epi32(_mm_and_si128(both, _mm_set1_epi8(15)));
  }
  static void store_nibbles(uint8_t* p, I32 a) {
    const __m128i codes = _mm512_cvtepi32_epi8(a.v);
    const __m128i pairs = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x0110));  // 16 * even + odd
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtepi16_epi8(pairs));
  }

  static I32 load_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bytes(uint8_t* p, I32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
  }
  static void store_bytes(uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    const __m512i words[] = {_mm512_packus_epi32(a.v, b.v), _mm512_packus_epi32(c.v, d.v)};
    const __m512i bytes = _mm512_packus_epi16(words[0], words[1]);  // within each quarter
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
  }
  static void store_rounded(int8_t* p, F32 a) {
    store_bytes(reinterpret_cast<uint8_t*>(p), _mm512_cvtps_epi32(a.v));
  }
  static F32 from_int32(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
  static F32 from_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  static F32 gather(const float* base, I32 index) {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), all_lanes(), index.v, base, 4);
  }
  static I32 gather(const int32_t* base, I32 index) {
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), all_lanes(), index.v, base, 4);
  }
  // A compiler that knew that all lanes are gathered would let them be written onto any register,
  // and each gather would wait for what was in there before.
  static __mmask16 all_lanes() {
    __mmask16 lanes = 0xffff;
#ifdef __GNUC__
    __asm__("" : "+Yk"(lanes));
#endif
    return lanes;
  }

  static F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
  static I32 bits(F32 a) { return _mm512_castps_si512(a.v); }
  static I32 abs_bits(F32 a) {
    return _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff));
  }
  static F32 from_bits(I32 a) { return _mm512_castsi512_ps(a.v); }
  static I32 max(I32 a, I32 b) { return _mm512_max_epi32(a.v, b.v); }
  static I32 min(I32 a, I32 b) { return _mm512_min_epi32(a.v, b.v); }
  template <int kShift>
  static I32 shift_right(I32 a) {
    return _mm512_srai_epi32(a.v, kShift);
  }
  static I32 where_greater(F32 a, F32 b, int32_t value) {
    return _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), value);
  }
  static I32 where_greater(I32 a, I32 b, int32_t value) {
    return _mm512_maskz_set1_epi32(_mm512_cmpgt_epi32_mask(a.v, b.v), value);
  }
  static F32 zero_outliers(F32 a, float threshold) {
    const __m512 magnitude = _mm512_castsi512_ps(abs_bits(a).v);
    const __mmask16 keep = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(threshold), _CMP_NGE_UQ);
    return _mm512_maskz_mov_ps(keep, a.v);
  }
  static F32 where_zero(F32 condition, F32 a, F32 b) {
    const __mmask16 zero = _mm512_cmp_ps_mask(condition.v, _mm512_setzero_ps(), _CMP_EQ_OQ);
    return _mm512_mask_blend_ps(zero, b.v, a.v);
  }

  static float sum(F32 a) { return _mm512_reduce_add_ps(a.v); }
  static int32_t max_lane(I32 a) { return _mm512_reduce_max_epi32(a.v); }

  static constexpr int kInt8Width = 32;
  struct Int8 {
    __m512i v;
  };
  static Int8 load_int8(const int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static I32 dot(I32 sum, Int8 a, Int8 b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum.v, a.v, b.v);
#else
    return _mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v));
#endif
  }
  static int32_t sum(I32 a) { return _mm512_reduce_add_epi32(a.v); }
};

}  // namespace avx512
}  // namespace bnbx

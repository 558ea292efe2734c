// The vector vocabulary on AVX2 with FMA and F16C. vec_scalar.h says what each word means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/types.h"

namespace bnbx {
namespace avx2 {

struct F32 {
  __m256 v;
  F32() = default;
  F32(__m256 x) : v(x) {}  // NOLINT(google-explicit-constructor)
  explicit F32(float x) : v(_mm256_set1_ps(x)) {}
};

struct I32 {
  __m256i v;
  I32() = default;
  I32(__m256i x) : v(x) {}  // NOLINT(google-explicit-constructor)
  explicit I32(int32_t x) : v(_mm256_set1_epi32(x)) {}
};

static inline F32 operator+(F32 a, F32 b) { return _mm256_add_ps(a.v, b.v); }
static inline F32 operator-(F32 a, F32 b) { return _mm256_sub_ps(a.v, b.v); }
static inline F32 operator*(F32 a, F32 b) { return _mm256_mul_ps(a.v, b.v); }
static inline F32 operator/(F32 a, F32 b) { return _mm256_div_ps(a.v, b.v); }
static inline I32 operator+(I32 a, I32 b) { return _mm256_add_epi32(a.v, b.v); }
static inline I32 operator-(I32 a, I32 b) { return _mm256_sub_epi32(a.v, b.v); }
static inline I32 operator|(I32 a, I32 b) { return _mm256_or_si256(a.v, b.v); }
static inline I32 operator&(I32 a, I32 b) { return _mm256_and_si256(a.v, b.v); }
static inline I32 operator^(I32 a, I32 b) { return _mm256_xor_si256(a.v, b.v); }
static inline I32 operator*(I32 a, I32 b) { return _mm256_mullo_epi32(a.v, b.v); }
template <int kShift>
static inline I32 shift_right_logical(I32 a) {
  return _mm256_srli_epi32(a.v, kShift);
}
static inline F32 sqrt(F32 a) { return _mm256_sqrt_ps(a.v); }
static inline F32 sign(F32 a) {
  const __m256 signed_lanes = _mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NEQ_OQ);
  const __m256 bit = _mm256_and_ps(a.v, _mm256_set1_ps(-0.0f));
  return _mm256_blendv_ps(a.v, _mm256_or_ps(bit, _mm256_set1_ps(1.0f)), signed_lanes);
}

struct Vec {
  using F32 = avx2::F32;
  using Fused = F32;
  using I32 = avx2::I32;
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 2;

  struct Table16 {
    __m256 low, high;
  };
  static Table16 table16(const float* entries) {
    return {_mm256_loadu_ps(entries), _mm256_loadu_ps(entries + 8)};
  }
  static F32 lookup(const Table16& table, I32 index) {
    const __m256 low = _mm256_permutevar8x32_ps(table.low, index.v);
    const __m256 high = _mm256_permutevar8x32_ps(table.high, index.v);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 28)));
  }

  static F32 load(const float* p) { return _mm256_loadu_ps(p); }
  static F32 load(const bfloat16* p) {
    const __m256i wide =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F32 load(const float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
  static void store(bfloat16* p, F32 a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store(float16* p, F32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static I32 load_nibbles(const uint8_t* p) {
    int32_t packed;
    memcpy(&packed, p, 4);
    const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(packed), shifts),
                            _mm256_set1_epi32(15));
  }
  static void store_nibbles(uint8_t* p, I32 a) {
    // Bring each code to its place in the 32-bit word, then or the lanes together.
    const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    const __m256i placed = _mm256_sllv_epi32(a.v, shifts);
    __m128i half =
        _mm_or_si128(_mm256_castsi256_si128(placed), _mm256_extracti128_si256(placed, 1));
    half = _mm_or_si128(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_or_si128(half, _mm_shuffle_epi32(half, 0xb1));
    const int32_t packed = _mm_cvtsi128_si32(half);
    memcpy(p, &packed, 4);
  }

  static I32 load_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bytes(uint8_t* p, I32 a) {
    const __m256i order =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(a.v, order);
    const __m128i packed =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), packed);
  }
  static void store_bytes(uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    const __m256i words[] = {_mm256_packus_epi32(a.v, b.v), _mm256_packus_epi32(c.v, d.v)};
    const __m256i bytes = _mm256_packus_epi16(words[0], words[1]);  // within each half of a vector
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
  }
  static void store_rounded(int8_t* p, F32 a) {
    store_bytes(reinterpret_cast<uint8_t*>(p), _mm256_cvtps_epi32(a.v));
  }
  static F32 from_int32(const int32_t* p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F32 from_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static F32 gather(const float* base, I32 index) { return _mm256_i32gather_ps(base, index.v, 4); }
  static I32 gather(const int32_t* base, I32 index) {
    return _mm256_i32gather_epi32(base, index.v, 4);
  }

  static F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
  static I32 bits(F32 a) { return _mm256_castps_si256(a.v); }
  static I32 abs_bits(F32 a) {
    return _mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(0x7fffffff));
  }
  static F32 from_bits(I32 a) { return _mm256_castsi256_ps(a.v); }
  static I32 max(I32 a, I32 b) { return _mm256_max_epi32(a.v, b.v); }
  static I32 min(I32 a, I32 b) { return _mm256_min_epi32(a.v, b.v); }
  template <int kShift>
  static I32 shift_right(I32 a) {
    return _mm256_srai_epi32(a.v, kShift);
  }
  static I32 where_greater(F32 a, F32 b, int32_t value) {
    return _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)),
                            _mm256_set1_epi32(value));
  }
  static I32 where_greater(I32 a, I32 b, int32_t value) {
    return _mm256_and_si256(_mm256_cmpgt_epi32(a.v, b.v), _mm256_set1_epi32(value));
  }
  static F32 zero_outliers(F32 a, float threshold) {
    const __m256 magnitude = _mm256_castsi256_ps(abs_bits(a).v);
    return _mm256_andnot_ps(_mm256_cmp_ps(magnitude, _mm256_set1_ps(threshold), _CMP_GE_OQ), a.v);
  }
  static F32 where_zero(F32 condition, F32 a, F32 b) {
    return _mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(condition.v, _mm256_setzero_ps(), _CMP_EQ_OQ));
  }

  static float sum(F32 a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static int32_t max_lane(I32 a) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
  }

  static constexpr int kInt8Width = 16;
  struct Int8 {
    __m256i v;
  };
  static Int8 load_int8(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static I32 dot(I32 sum, Int8 a, Int8 b) {
    return _mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v));
  }
  static int32_t sum(I32 a) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
};

}  // namespace avx2
}  // namespace bnbx

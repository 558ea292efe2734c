// quantize_4bit for bf16 and fp16 on AVX-512: 32 values at a time, compared as 16-bit integers.
//
// x is above a boundary if x * (1 / absmax), rounded to float32, is. That is monotonic in x, so for
// each block there is a largest 16-bit value that is not above it. 15 such thresholds are worked
// out for a block, in one vector; the values are then never widened.
//
// Limit: about 10 cycles for 32 values and 12 for the thresholds of a block. To come near it, each
// step is done for 16 blocks before the next: a block's steps wait for each other.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx/parallel.h"
#include "avx/quantize_4bit.h"

namespace bnbx::cpu {

static constexpr int64_t kWords = 32;         // 16-bit values of a vector
static constexpr int64_t kBlocksAtOnce = 16;  // floats of a vector

template <class T>
struct Words;

template <>
struct Words<bfloat16> {
  // The largest values that are not above those given. `negative` has the lanes below zero.
  static __m256i floor(__m512 x, __mmask16 negative) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i away = _mm512_mask_add_epi32(bits, negative, bits, _mm512_set1_epi32(0xffff));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(away, 16));
  }
  static __m512 widen(__m256i words) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  }
};

template <>
struct Words<float16> {
  static __m256i floor(__m512 x, __mmask16) {
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static __m512 widen(__m256i words) { return _mm512_cvtph_ps(words); }
};

// The largest magnitude of n values, a multiple of 32, as a 16-bit pattern.
static inline uint16_t absmax_word(const void* A, int64_t n) {
  const auto* words = static_cast<const uint16_t*>(A);
  __m512i best = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += kWords) {
    const __m512i magnitude =
        _mm512_and_si512(_mm512_loadu_si512(words + i), _mm512_set1_epi16(0x7fff));
    best = _mm512_max_epu16(best, magnitude);
  }
  const __m256i half =
      _mm256_max_epu16(_mm512_castsi512_si256(best), _mm512_extracti64x4_epi64(best, 1));
  const __m128i quarter =
      _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  // The instruction finds the smallest: of the complements.
  const __m128i smallest = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));
  return static_cast<uint16_t>(~_mm_cvtsi128_si32(smallest));
}

// Finds codes by bisection in a search tree of the thresholds, laid out in breadth-first order: the
// children of node i are 2i and 2i + 1, the leaves 16 to 31.
template <class V, class T>
class WordEncoder {
 public:
  explicit WordEncoder(const Codebook4& book) : plain_(book) {
    float bounds[16] = {}, raised[16] = {};  // by node; there is no node 0
    uint16_t codes[kWords] = {};             // by leaf
    for (int node = 1; node < 16; ++node) {
      bounds[node] = book.bounds[bound_of(node)];
      // Higher by more than the products' rounding errors, by less than a step of 16-bit values.
      raised[node] = bounds[node] + (bounds[node] < 0 ? -bounds[node] : bounds[node]) * 0x1p-21f;
    }
    for (int i = 0; i < 16; ++i) codes[16 + i] = book.code_at[i];
    bounds_ = _mm512_loadu_ps(bounds);
    raised_ = _mm512_loadu_ps(raised);
    codes_ = _mm512_loadu_si512(codes);
    negative_ = _mm512_cmp_ps_mask(bounds_, _mm512_setzero_ps(), _CMP_LT_OQ);
    sign_ = _mm512_set1_epi16(-0x8000);
    one_ = _mm512_set1_epi16(1);
    two_ = _mm512_set1_epi16(2);
    three_ = _mm512_set1_epi16(3);
    pair_ = _mm512_set1_epi32(0x00010010);
  }

  // Quantizes up to 16 whole blocks.
  void quantize(const T* A, int64_t blocks, int64_t blocksize, uint8_t* out, float* absmax) const {
    uint16_t words[kBlocksAtOnce] = {};
    for (int64_t b = 0; b < blocks; ++b) words[b] = absmax_word(A + b * blocksize, blocksize);
    const __m512 scales =
        Words<T>::widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    alignas(64) float inverses[kBlocksAtOnce];
    _mm512_store_ps(inverses, _mm512_div_ps(_mm512_set1_ps(1.0f), scales));
    const auto all = static_cast<__mmask16>((1u << blocks) - 1u);
    _mm512_mask_storeu_ps(absmax, all, scales);

    // Beyond these, NaN and infinity among them, products could leave float32's normal range.
    const __mmask16 regular = _mm512_cmp_ps_mask(scales, _mm512_set1_ps(0x1p-100f), _CMP_GE_OQ) &
                              _mm512_cmp_ps_mask(scales, _mm512_set1_ps(0x1p14f), _CMP_LE_OQ);
    alignas(64) __m512i thresholds[kBlocksAtOnce];
    for (int64_t b = 0; b < blocks; ++b) thresholds[b] = thresholds_of(absmax[b], inverses[b]);
    for (int64_t b = 0; b < blocks; ++b) {
      encode(A + b * blocksize, blocksize, thresholds[b], out + b * blocksize / 2);
    }
    if ((regular & all) == all) return;
    for (int64_t b = 0; b < blocks; ++b) {
      if ((regular >> b & 1) != 0) continue;
      absmax[b] =
          quantize_4bit_block<V>(A + b * blocksize, blocksize, plain_, out + b * blocksize / 2);
    }
  }

  // For what is not a whole block.
  const Encoder4<V>& plain() const { return plain_; }

 private:
  // The boundary between positions that a node of the tree asks for.
  static int bound_of(int node) {
    int level = 1, step = 8;
    for (; 2 * level <= node; level *= 2) step /= 2;
    return (2 * (node - level) + 1) * step - 1;
  }

  // By node, in the lower 16 words: the largest value that is not above the node's boundary, as a
  // signed integer that ascends with the value.
  __m512i thresholds_of(float absmax, float inverse) const {
    const __m512 raised = _mm512_mul_ps(raised_, _mm512_set1_ps(absmax));
    const __m256i words = Words<T>::floor(raised, negative_);  // this or the one below
    const __m512 scaled = _mm512_mul_ps(Words<T>::widen(words), _mm512_set1_ps(inverse));
    const __mmask16 above = _mm512_cmp_ps_mask(scaled, bounds_, _CMP_GT_OQ);
    const __m256i ascending =
        _mm256_mask_sub_epi16(words, negative_, _mm512_castsi512_si256(sign_), words);
    return _mm512_castsi256_si512(
        _mm256_mask_sub_epi16(ascending, above, ascending, _mm512_castsi512_si256(one_)));
  }

  void encode(const T* A, int64_t n, __m512i thresholds, uint8_t* out) const {
    const __m512i root = _mm512_permutexvar_epi16(one_, thresholds);
    for (int64_t i = 0; i < n; i += kWords) {
      const __m512i bits = _mm512_loadu_si512(A + i);
      prefetch(A + i + kBlocksAtOnce * n);  // the same place in the next blocks
      const __m512i x = _mm512_mask_sub_epi16(bits, _mm512_movepi16_mask(bits), sign_, bits);
      __m512i node = _mm512_mask_blend_epi16(_mm512_cmpgt_epi16_mask(x, root), two_, three_);
      for (int level = 1; level < 4; ++level) {
        const __m512i threshold = _mm512_permutexvar_epi16(node, thresholds);
        node = _mm512_add_epi16(node, node);
        node = _mm512_mask_add_epi16(node, _mm512_cmpgt_epi16_mask(x, threshold), node, one_);
      }
      const __m512i codes = _mm512_permutexvar_epi16(node, codes_);
      const __m512i pairs = _mm512_madd_epi16(codes, pair_);  // 16 * even + odd
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i / 2), _mm512_cvtepi32_epi8(pairs));
    }
  }

  Encoder4<V> plain_;
  __m512 bounds_, raised_;
  __m512i codes_;
  __mmask16 negative_;
  // Kept in memory: as immediates the compiler would make them anew for each block.
  __m512i sign_, one_, two_, three_, pair_;
};

template <class V, class T>
static inline void quantize_words(const T* A, int64_t n, int64_t blocksize, const Codebook4& book,
                                  uint8_t* out, float* absmax) {
  const WordEncoder<V, T> encoder(book);
  parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
    const int64_t whole = smaller(end, n / blocksize);
    while (b < whole) {
      const int64_t blocks = smaller(kBlocksAtOnce, whole - b);
      encoder.quantize(A + b * blocksize, blocks, blocksize, out + b * blocksize / 2, absmax + b);
      b += blocks;
    }
    if (b < end) {
      absmax[b] = quantize_4bit_block<V>(A + b * blocksize, n - b * blocksize, encoder.plain(),
                                         out + b * blocksize / 2);
    }
  });
}

template <class V>
void quantize_4bit_words(const void* A, DType dtype, int64_t n, int64_t blocksize,
                         QuantType quant_type, uint8_t* out, float* absmax, Stream stream) {
  const Codebook4& book = codebook(quant_type);
  switch (dtype) {
    case DType::kFloat32:
      return quantize_4bit<V>(A, dtype, n, blocksize, quant_type, out, absmax, stream);
    case DType::kFloat16:
      return quantize_words<V>(static_cast<const float16*>(A), n, blocksize, book, out, absmax);
    case DType::kBFloat16:
      return quantize_words<V>(static_cast<const bfloat16*>(A), n, blocksize, book, out, absmax);
  }
}

}  // namespace bnbx::cpu

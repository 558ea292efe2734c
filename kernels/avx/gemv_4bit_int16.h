// gemm_4bit for a few rows of 16-bit activations: the weight is read once, decoded in registers and
// multiplied as 16-bit integers, which takes half the work of bf16 dot products.
//
// The table holds the 16 values times 2^14, to nearest. A group of 64 activations is scaled by a
// power of two, so that its largest has 15 bits: those down to 2^-7 of it stay exact (bf16; 2^-4
// for fp16), the others are rounded to 2^-15 of it. Four products of 30 bits fit 32, the scales of
// a block and of a group multiply the sum over the group in float32.
//
// Limit: 8 operations on two ports, 4 cycles, for 64 codes and one row.
#pragma once

#include "avx/decode_words.h"
#include "avx/parallel.h"

namespace bnbx::cpu {

static constexpr int kGemvRows = 4;  // rows of the weight in flight
static constexpr int kTableBits = 14;
static constexpr int kActivationBits = 15;

// Rows of activations as integers, each group split into even and odd positions. The scale of a
// group with a NaN or an infinity, which integers do not have, is NaN.
template <class V>
struct IntegerRows {
  Workspace<int16_t> values;  // (M, groups, 64)
  Workspace<float> scales;    // (M, groups): of a value, divided by that of the table
};

template <class V, class T>
static inline IntegerRows<V> to_integers(const T* A, int64_t rows, int64_t groups) {
  IntegerRows<V> out{allocate<int16_t>(rows * groups * kGroup), allocate<float>(rows * groups)};
  for (int64_t i = 0; i < rows * groups; ++i) {
    const T* group = A + i * kGroup;
    const float absmax = finite_absmax<V>(group, kGroup);
    constexpr int kSmallestExponent = -90;  // keeps all scales normal numbers
    const int exponent = static_cast<int>(float_bits(absmax) >> 23) - 127;
    const int shift =
        kActivationBits - 1 - (exponent > kSmallestExponent ? exponent : kSmallestExponent);
    const __m512 scale = _mm512_set1_ps(bits_float(static_cast<uint32_t>(127 + shift) << 23));
    alignas(64) int16_t integers[kGroup];
    for (int64_t k = 0; k < kGroup; k += 16) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(V::load(group + k).v, scale));
      _mm256_store_si256(reinterpret_cast<__m256i*>(integers + k), _mm512_cvtepi32_epi16(rounded));
    }
    __m512i even, odd;
    split(integers, &even, &odd);
    _mm512_store_si512(out.values.get() + i * kGroup, even);
    _mm512_store_si512(out.values.get() + i * kGroup + kGroup / 2, odd);
    const float unit = bits_float(static_cast<uint32_t>(127 - shift - kTableBits) << 23);
    out.scales[i] = absmax != absmax ? absmax : unit;
  }
  return out;
}

// The 16 values as integers, twice.
static inline __m512i integer_table(const Codebook4& book) {
  const __m512 one = _mm512_set1_ps(static_cast<float>(1 << kTableBits));
  const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(book.values), one));
  return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(rounded));
}

// sums[m][r] = row m of the activations times row r of the weight. `scales` are (kM, kGemvRows,
// groups).
template <class V, int kM>
static inline void gemv_rows(const int16_t* A, int64_t groups, const uint8_t* const* B,
                             const float* scales, __m512i table, float sums[kM][kGemvRows]) {
  __m512 acc[kM][kGemvRows];
  for (auto& row : acc) {
    for (__m512& lanes : row) lanes = _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int r = 0; r < kGemvRows; ++r) {
      const uint8_t* packed = B[r] + g * (kGroup / 2);
      const __m512i codes = codes_of(packed);
      prefetch(packed + kGemvRows * groups * (kGroup / 2));  // the same place in the next tile
      const __m512i even = even_values(codes, table), odd = odd_values(codes, table);
      for (int m = 0; m < kM; ++m) {
        const int16_t* a = A + (m * groups + g) * kGroup;
        const __m512i half = _mm512_madd_epi16(even, _mm512_load_si512(a));
        const __m512i dot = V::dot(half, {odd}, {_mm512_load_si512(a + kGroup / 2)}).v;
        const __m512 scale = _mm512_set1_ps(scales[(m * kGemvRows + r) * groups + g]);
        acc[m][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, acc[m][r]);
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int r = 0; r < kGemvRows; ++r) sums[m][r] = _mm512_reduce_add_ps(acc[m][r]);
  }
}

// Rows m0 to m0 + kM of the product.
template <class V, int kM, class T>
static inline void gemv_chunk(const Product4& p, const IntegerRows<V>& A, int64_t m0) {
  const int64_t groups = p.K / kGroup;
  const auto* bias = static_cast<const T*>(p.bias);
  auto* out = static_cast<T*>(p.out) + m0 * p.N;
  const float* A_scales = A.scales.get() + m0 * groups;
  const __m512i table = integer_table(codebook(p.quant_type));
  const int64_t grain = ceil_div(65536, kGemvRows * p.K);
  parallel_for(ceil_div(p.end - p.begin, kGemvRows), grain, [&](int64_t tile, int64_t end) {
    const auto row_scales = allocate<float>(kGemvRows * groups);
    const auto scales = allocate<float>(kM * kGemvRows * groups);
    for (; tile < end; ++tile) {
      const int64_t n0 = p.begin + tile * kGemvRows;
      const int64_t last = smaller(kGemvRows, p.end - n0) - 1;
      const int64_t first = p.first_row + n0;  // in B
      group_scales<V>(p.scales, first * groups, (last + 1) * groups, row_scales.get());
      const uint8_t* rows[kGemvRows];
      for (int64_t r = 0; r < kGemvRows; ++r) {  // rows beyond the last repeat it
        const int64_t row = smaller(r, last);
        rows[r] = p.B + (first + row) * (p.K / 2);
        for (int m = 0; m < kM; ++m) {
          float* products = scales.get() + (m * kGemvRows + r) * groups;
          for (int64_t g = 0; g < groups; ++g) {
            products[g] = row_scales[row * groups + g] * A_scales[m * groups + g];
          }
        }
      }
      float sums[kM][kGemvRows];
      gemv_rows<V, kM>(A.values.get() + m0 * p.K, groups, rows, scales.get(), table, sums);
      for (int m = 0; m < kM; ++m) {
        for (int64_t n = n0; n < smaller(n0 + kGemvRows, p.end); ++n) {
          const float offset = bias == nullptr ? 0.0f : to_float(bias[n]);
          from_float(sums[m][n - n0] + offset, out + m * p.N + n);
        }
      }
    }
  });
}

template <class V, class T>
static inline void gemv_4bit_of(const Product4& p) {
  const IntegerRows<V> A = to_integers<V>(static_cast<const T*>(p.A), p.M, p.K / kGroup);
  for (int64_t m = 0; m < p.M; m += 4) {
    switch (smaller(4, p.M - m)) {
      case 1: gemv_chunk<V, 1, T>(p, A, m); break;
      case 2: gemv_chunk<V, 2, T>(p, A, m); break;
      case 3: gemv_chunk<V, 3, T>(p, A, m); break;
      default: gemv_chunk<V, 4, T>(p, A, m);
    }
  }
}

// Returns false, having done nothing, if the product is not of the kind that this kernel is for.
template <class V>
static inline bool gemv_4bit_int16(const Product4& p, int64_t most_rows) {
  if (p.M > most_rows || p.K == 0 || !groups_are_regular(p)) return false;
  switch (p.dtype) {
    case DType::kFloat16: gemv_4bit_of<V, float16>(p); return true;
    case DType::kBFloat16: gemv_4bit_of<V, bfloat16>(p); return true;
    default: return false;
  }
}

}  // namespace bnbx::cpu

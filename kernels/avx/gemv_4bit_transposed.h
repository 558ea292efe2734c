// gemm_4bit_transposed for a few rows of bf16: the weight is read once and decoded in registers.
//
// A product of an activation and the scale of a block is one factor, rounded to bf16; the table has
// the 16 values in bf16. Two rows of the weight are interleaved byte by byte before they are looked
// up, so that a dot product of pairs takes both.
//
// Limit: 8 shuffles on one port, 8 cycles, for 128 codes and up to one row; 4 more for a row more.
#pragma once

#include <cstring>

#include "avx/decode_bf16.h"
#include "avx/parallel.h"

namespace bnbx::cpu {

static constexpr int64_t kBlockRows = 64;  // of the weight, whose factors are made at a time
static constexpr int kLanes = 16;
static constexpr int kQuarters = 4;  // vectors of sums of a group of 64 columns

// Factors of a group's rows: kM times kBlockRows, two rows of the weight to a word. `scales` are
// (kBlockRows, groups), those of the group from the pointer on.
template <int kM>
static inline void make_factors(const float* activations, const float* scales, int64_t groups,
                                bfloat16* factors) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i stride = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(groups)));
  for (int64_t n = 0; n < kBlockRows; n += 2 * kLanes) {
    const __m512 low = _mm512_i32gather_ps(stride, scales + n * groups, 4);
    const __m512 high = _mm512_i32gather_ps(stride, scales + (n + kLanes) * groups, 4);
    for (int m = 0; m < kM; ++m) {
      const float* a = activations + m * kBlockRows + n;
      const __m512 low_factors = _mm512_mul_ps(low, _mm512_load_ps(a));
      const __m512 high_factors = _mm512_mul_ps(high, _mm512_load_ps(a + kLanes));
      const __m512bh both = _mm512_cvtne2ps_pbh(high_factors, low_factors);
      _mm512_store_si512(factors + m * kBlockRows + n, reinterpret_cast<__m512i>(both));
    }
  }
}

// sums[m] += the factors of row m times `rows` rows (even) of a group of columns; `sums` are four
// vectors, `stride` apart from row to row: even and odd columns of bytes 0 to 7 and 16 to 23, then
// of the other bytes.
template <int kM>
static inline void add_group(const uint8_t* packed, int64_t row_bytes, int64_t rows,
                             const bfloat16* factors, __m512i table, float* sums, int64_t stride) {
  __m512 acc[kM][kQuarters];
  for (int m = 0; m < kM; ++m) {
    for (int q = 0; q < kQuarters; ++q) acc[m][q] = _mm512_load_ps(sums + m * stride + q * kLanes);
  }
  for (int64_t n = 0; n < rows; n += 2) {
    const uint8_t* first = packed + n * row_bytes;
    const uint8_t* second = first + row_bytes;
    const __m256i bytes0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i bytes1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    _mm_prefetch(reinterpret_cast<const char*>(first + 64), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(second + 64), _MM_HINT_T0);
    const __m512i low = _mm512_cvtepu8_epi16(_mm256_unpacklo_epi8(bytes0, bytes1));
    const __m512i high = _mm512_cvtepu8_epi16(_mm256_unpackhi_epi8(bytes0, bytes1));
    const __m512i values[kQuarters] = {even_values(low, table), odd_values(low, table),
                                       even_values(high, table), odd_values(high, table)};
    for (int m = 0; m < kM; ++m) {
      int pair;
      memcpy(&pair, factors + m * kBlockRows + n, sizeof(pair));
      const auto factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      for (int q = 0; q < kQuarters; ++q) {
        acc[m][q] = _mm512_dpbf16_ps(acc[m][q], reinterpret_cast<__m512bh>(values[q]), factor);
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int q = 0; q < kQuarters; ++q) _mm512_store_ps(sums + m * stride + q * kLanes, acc[m][q]);
  }
}

// Writes the sums of a group of columns in the order of its columns.
static inline void write_columns(const float* sums, bfloat16* out) {
  for (int half = 0; half < 2; ++half) {
    const float* even = sums + 2 * half * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int byte = lane % 8 + 16 * (lane / 8) + 8 * half;
      from_float(even[lane], out + 2 * byte);
      from_float(even[lane + kLanes], out + 2 * byte + 1);
    }
  }
}

// Rows m0 to m0 + kM of the product, groups `begin` to `end` of their columns.
template <class V, int kM>
static inline void gemv_columns(const Product4& p, int64_t m0, int64_t begin, int64_t end) {
  const int64_t groups = end - begin, row_groups = p.K / kGroup;
  const int64_t stride = groups * kGroup;
  const auto sums = allocate<float>(kM * stride);
  const auto scales = allocate<float>(kBlockRows * groups);
  memset(sums.get(), 0, kM * stride * sizeof(float));
  const __m512i table = bf16_table(_mm512_loadu_ps(codebook(p.quant_type).values), 1.0f);
  const auto* A = static_cast<const bfloat16*>(p.A) + m0 * p.N;
  for (int64_t n0 = 0; n0 < p.N; n0 += kBlockRows) {
    const int64_t rows = smaller(kBlockRows, p.N - n0);
    alignas(64) float activations[kM * kBlockRows] = {};
    alignas(64) bfloat16 factors[kM * kBlockRows];
    const int64_t first = (p.first_row + n0) * row_groups + begin;
    memset(scales.get(), 0, kBlockRows * groups * sizeof(float));
    for (int64_t n = 0; n < rows; ++n) {
      group_scales<V>(p.scales, first + n * row_groups, groups, scales.get() + n * groups);
      for (int m = 0; m < kM; ++m) activations[m * kBlockRows + n] = to_float(A[m * p.N + n0 + n]);
    }
    for (int64_t g = 0; g < groups; ++g) {
      make_factors<kM>(activations, scales.get() + g, groups, factors);
      add_group<kM>(p.B + (first + g) * (kGroup / 2), row_groups * (kGroup / 2), rows, factors,
                    table, sums.get() + g * kGroup, stride);
    }
  }
  for (int m = 0; m < kM; ++m) {
    bfloat16* out = static_cast<bfloat16*>(p.out) + (m0 + m) * p.K + begin * kGroup;
    for (int64_t g = 0; g < groups; ++g) {
      write_columns(sums.get() + m * stride + g * kGroup, out + g * kGroup);
    }
  }
}

// Returns false, having done nothing, if the product is not of the kind that this kernel is for.
template <class V>
static inline bool gemv_4bit_transposed(const Product4& p, int64_t most_rows) {
  if (p.dtype != DType::kBFloat16 || p.M > most_rows || p.N % 2 != 0) return false;
  if (p.K == 0 || !groups_are_regular(p)) return false;
  const int64_t first_group = p.begin / kGroup;
  const int64_t grain = ceil_div(65536, kGroup * (p.N + 1));
  parallel_for(p.end / kGroup - first_group, grain, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < p.M; m += 4) {
      switch (smaller(4, p.M - m)) {
        case 1: gemv_columns<V, 1>(p, m, first_group + begin, first_group + end); break;
        case 2: gemv_columns<V, 2>(p, m, first_group + begin, first_group + end); break;
        case 3: gemv_columns<V, 3>(p, m, first_group + begin, first_group + end); break;
        default: gemv_columns<V, 4>(p, m, first_group + begin, first_group + end);
      }
    }
  });
  return true;
}

}  // namespace bnbx::cpu

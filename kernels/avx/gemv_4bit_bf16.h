// gemm_4bit for one to four rows of bf16 activations: the weight is read once, decoded in registers
// and multiplied with bf16 dot products. The table holds the 16 values in bf16; the scale of a
// block multiplies the sum over the block in float32.
#pragma once

#include "avx/decode_bf16.h"
#include "avx/parallel.h"

namespace bnbx::cpu {

static constexpr int kGemvRows = 4;  // rows of the weight in flight

// sums[m][r] = row m of the split activations times row r of the weight.
template <int kM>
static inline void gemv_rows(const bfloat16* A, int64_t groups, const uint8_t* const* B,
                             const float* scales, __m512i table, float sums[kM][kGemvRows]) {
  __m512 acc[kM][kGemvRows];
  for (auto& row : acc) {
    for (__m512& lanes : row) lanes = _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int r = 0; r < kGemvRows; ++r) {
      const __m512i codes = codes_of(B[r] + g * (kGroup / 2));
      const auto even = reinterpret_cast<__m512bh>(even_values(codes, table));
      const auto odd = reinterpret_cast<__m512bh>(odd_values(codes, table));
      const __m512 scale = _mm512_set1_ps(scales[r * groups + g]);
      for (int m = 0; m < kM; ++m) {
        const bfloat16* a = A + (m * groups + g) * kGroup;
        const auto a_even = reinterpret_cast<__m512bh>(_mm512_load_si512(a));
        const auto a_odd = reinterpret_cast<__m512bh>(_mm512_load_si512(a + kGroup / 2));
        __m512 dot = _mm512_dpbf16_ps(_mm512_setzero_ps(), even, a_even);
        dot = _mm512_dpbf16_ps(dot, odd, a_odd);
        acc[m][r] = _mm512_fmadd_ps(dot, scale, acc[m][r]);
      }
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int r = 0; r < kGemvRows; ++r) sums[m][r] = _mm512_reduce_add_ps(acc[m][r]);
  }
}

template <class V, int kM>
static inline void gemv_4bit_bf16_of(const Product4& p) {
  const int64_t groups = p.K / kGroup;
  const auto activations = allocate<bfloat16>(kM * p.K);
  for (int64_t i = 0; i < kM * groups; ++i) {
    __m512i even, odd;
    split(static_cast<const bfloat16*>(p.A) + i * kGroup, &even, &odd);
    _mm512_store_si512(activations.get() + i * kGroup, even);
    _mm512_store_si512(activations.get() + i * kGroup + kGroup / 2, odd);
  }
  const auto* bias = static_cast<const bfloat16*>(p.bias);
  auto* out = static_cast<bfloat16*>(p.out);
  const __m512i table = bf16_table(_mm512_loadu_ps(codebook(p.quant_type).values), 1.0f);
  const int64_t grain = ceil_div(65536, kGemvRows * p.K);
  const int64_t tiles = ceil_div(p.N, kGemvRows);
  const auto all_scales = allocate<float>(tiles * kGemvRows * groups);
  parallel_for(tiles, grain, [&](int64_t tile, int64_t end) {
    for (; tile < end; ++tile) {
      const int64_t n0 = tile * kGemvRows;
      const uint8_t* rows[kGemvRows];
      float* scales = all_scales.get() + n0 * groups;
      for (int r = 0; r < kGemvRows; ++r) {  // rows beyond the last repeat it
        const int64_t n = smaller(n0 + r, p.N - 1);
        rows[r] = p.B + n * (p.K / 2);
        group_scales<V>(p.scales, n * groups, groups, scales + r * groups);
      }
      float sums[kM][kGemvRows];
      gemv_rows<kM>(activations.get(), groups, rows, scales, table, sums);
      for (int m = 0; m < kM; ++m) {
        for (int64_t n = n0; n < smaller(n0 + kGemvRows, p.N); ++n) {
          const float offset = bias == nullptr ? 0.0f : to_float(bias[n]);
          from_float(sums[m][n - n0] + offset, out + m * p.N + n);
        }
      }
    }
  });
}

// Returns false, having done nothing, if the product is not of the kind that this kernel is for.
template <class V>
static inline bool gemv_4bit_bf16(const Product4& p) {
  if (p.dtype != DType::kBFloat16 || p.K == 0 || p.N == 0 || !groups_are_regular(p)) return false;
  switch (p.M) {
    case 1: gemv_4bit_bf16_of<V, 1>(p); return true;
    case 2: gemv_4bit_bf16_of<V, 2>(p); return true;
    case 3: gemv_4bit_bf16_of<V, 3>(p); return true;
    case 4: gemv_4bit_bf16_of<V, 4>(p); return true;
    default: return false;
  }
}

}  // namespace bnbx::cpu

// gemm_4bit and gemm_4bit_grouped for few rows: a SIMD-group makes an entry of the output, or those
// of a few rows. For more, the weight is decoded and multiplied by PyTorch.
#include "metal/codes_4bit.h"

namespace bnbx {

BNBX_CONSTANT uint kRows = 4;  // that share what is decoded

// Adds, to the sums of the first `rows` rows of A, a lane's share of their products with row number
// n of a weight of codes, in blocks of 2^shift.
template <class T>
BNBX_INLINE void add_products(const device T* A, ulong rows, ulong n, ulong K,
                              const device uchar* B, const device float* scales, long shift,
                              long quant_type, uint lane, thread float* sums) {
  const ulong begin = n * K, end = begin + K;
  for (ulong i = begin / 2 + lane; 2 * i < end; i += kLanes) {
    const uint both = B[i];
    for (uint which = 0; which < 2; ++which) {
      const ulong at = 2 * i + which;
      if (at < begin || at >= end) continue;
      const uint code = which == 0 ? both >> 4 : both & 15;
      const float weight = level(quant_type, code) * scales[at >> shift];
      for (uint r = 0; r < kRows && r < rows; ++r) {
        sums[r] += element(A, r * K + (at - begin)) * weight;
      }
    }
  }
}

}  // namespace bnbx

template <class T>
BNBX_KERNEL void gemm_4bit(const device T* A, constant long& M, constant long& N, constant long& K,
                           const device uchar* B, const device float* scales, constant long& shift,
                           constant long& quant_type, const device T* bias, constant long& has_bias,
                           device T* out, BNBX_PLACE) {
  const ulong number = simd_number(block, simd), n = number % N, first = number / N * kRows;
  const ulong rows = first < ulong(M) ? M - first : 0;
  float sums[kRows] = {};
  if (rows > 0) {
    add_products(A + first * K, rows, n, K, B, scales, shift, quant_type, lane, sums);
  }
  for (uint r = 0; r < kRows; ++r) {
    const float sum = metal::simd_sum(sums[r]);
    if (lane != 0 || r >= rows) continue;
    const float added = has_bias != 0 ? element(bias, n) : 0.0f;
    set_element(out, (first + r) * N + n, sum + added);
  }
}

// A row without an expert becomes zeros. What is wrong in `ends` is taken for the nearest that is
// not: each is a number from the one before to M.
template <class T>
BNBX_KERNEL void gemm_4bit_grouped(const device T* A, constant long& M, const device long* ends,
                                   constant long& E, constant long& N, constant long& K,
                                   const device uchar* B, const device float* scales,
                                   constant long& shift, constant long& quant_type,
                                   const device T* bias, constant long& has_bias, device T* out,
                                   BNBX_PLACE) {
  const ulong number = simd_number(block, simd), n = number % N, row = number / N;
  long expert = 0;
  while (expert < E && ends[expert] <= long(row)) ++expert;
  const bool has_expert = row < ulong(M) && expert < E;
  const ulong weight_row = ulong(expert) * N + n;
  float sums[kRows] = {};
  if (has_expert) {
    add_products(A + row * K, 1, weight_row, K, B, scales, shift, quant_type, lane, sums);
  }
  const float sum = metal::simd_sum(sums[0]);
  if (lane != 0 || row >= ulong(M)) return;
  const float added = has_expert && has_bias != 0 ? element(bias, weight_row) : 0.0f;
  set_element(out, row * N + n, sum + added);
}

BNBX_INSTANTIATE("gemm_4bit_float32", gemm_4bit<float>)
BNBX_INSTANTIATE("gemm_4bit_float16", gemm_4bit<float16>)
BNBX_INSTANTIATE("gemm_4bit_bfloat16", gemm_4bit<bfloat16>)
BNBX_INSTANTIATE("gemm_4bit_grouped_float32", gemm_4bit_grouped<float>)
BNBX_INSTANTIATE("gemm_4bit_grouped_float16", gemm_4bit_grouped<float16>)
BNBX_INSTANTIATE("gemm_4bit_grouped_bfloat16", gemm_4bit_grouped<bfloat16>)

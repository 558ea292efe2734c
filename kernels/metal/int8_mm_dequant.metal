// int8_mm_dequant and int8_mixed_scaled_mm: what becomes of the sums of an int8 product. A thread
// makes an entry.
#include "metal/int8_rows.h"

namespace bnbx {

// Places of the integers that tell a kernel what it gets.
enum Int8Option { kEntries, kColumns, kDepth, kHasBias, kBiasDtype, kOutDtype, kOutliers, kADtype };

BNBX_INLINE void store_entry(constant long* options, const device void* bias, device void* out,
                             ulong i, float x) {
  const ulong n = i % options[kColumns];
  const float added = options[kHasBias] != 0 ? load(bias, options[kBiasDtype], n) : 0.0f;
  store(out, options[kOutDtype], i, x + added);
}

}  // namespace bnbx

template <class Sum>
BNBX_KERNEL void int8_mm_dequant(constant long* options, const device Sum* sums,
                                 const device float* row_stats, const device float* col_stats,
                                 const device void* bias, device void* out, BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (i >= ulong(options[kEntries])) return;
  const ulong m = i / options[kColumns], n = i % options[kColumns];
  const float scale = col_stats[n] * (row_stats[m] * kInt8Scale);
  store_entry(options, bias, out, i, float(sums[i]) * scale);
}

BNBX_INSTANTIATE("int8_mm_dequant", int8_mm_dequant<int>)

// The same plus the products of the columns of A (M, K) that were held back with those of B (N, K).
template <class Sum>
BNBX_KERNEL void int8_mixed_dequant(constant long* options, const device Sum* sums,
                                    const device float* row_stats, const device float* col_stats,
                                    const device void* A, const device int8_t* B,
                                    const device long* outlier_cols, const device void* bias,
                                    device void* out, BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (i >= ulong(options[kEntries])) return;
  const ulong m = i / options[kColumns], n = i % options[kColumns], K = options[kDepth];
  float product = 0.0f;
  for (long j = 0; j < options[kOutliers]; ++j) {
    const ulong k = outlier_cols[j];
    product += load(A, options[kADtype], m * K + k) * float(B[n * K + k]);
  }
  const float in_codes = float(sums[i]) * unit_of_row(row_stats[m]) + product;
  store_entry(options, bias, out, i, in_codes * unit_of_row(col_stats[n]));
}

BNBX_INSTANTIATE("int8_mixed_dequant", int8_mixed_dequant<int>)

// int8_double_quant: the columns of a matrix as int8_vectorwise_quant has its rows. A group takes
// 32 columns, a lane one of them, the SIMD-groups every eighth row.
#include "metal/int8_rows.h"

template <class T>
BNBX_KERNEL void int8_column_quant(const device T* A, constant long& rows, constant long& columns,
                                   constant float& threshold, device int8_t* out,
                                   device float* stats, BNBX_PLACE) {
  BNBX_SHARED uint largest_of[kSimds][kLanes];
  const ulong c = ulong(block) * kLanes + lane;
  const float limit = outlier_limit(threshold);
  uint largest = 0;
  for (ulong r = simd; c < ulong(columns) && r < ulong(rows); r += kSimds) {
    const float x = without_outlier(element(A, r * columns + c), limit);
    largest = metal::max(largest, magnitude_bits(x));
  }
  largest_of[simd][lane] = largest;
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (c >= ulong(columns)) return;
  for (uint i = 0; i < kSimds; ++i) largest = metal::max(largest, largest_of[i][lane]);
  const float absmax = finite_magnitude(largest), scale = inverse_of_row(absmax);
  if (simd == 0) stats[c] = absmax;
  for (ulong r = simd; r < ulong(rows); r += kSimds) {
    const float x = without_outlier(element(A, r * columns + c), limit);
    out[r * columns + c] = is_nan(absmax) ? 0 : round_to_int8(x, scale);
  }
}

BNBX_INSTANTIATE("int8_column_quant_float32", int8_column_quant<float>)
BNBX_INSTANTIATE("int8_column_quant_float16", int8_column_quant<float16>)
BNBX_INSTANTIATE("int8_column_quant_bfloat16", int8_column_quant<bfloat16>)

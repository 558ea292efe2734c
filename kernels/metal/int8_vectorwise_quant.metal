// int8_vectorwise_quant: a group takes a row and reads it twice, first for its largest magnitude.
#include "metal/int8_rows.h"

// Outliers become 0, and set the flag of their column.
template <class T>
BNBX_KERNEL void int8_vectorwise_quant(const device T* A, constant long& columns,
                                       constant float& threshold, device int8_t* out,
                                       device float* stats, device uchar* outliers, BNBX_PLACE) {
  BNBX_SHARED uint of_simds[kSimds];
  const ulong first = ulong(block) * columns;
  const float limit = outlier_limit(threshold);
  uint largest = 0;
  for (ulong c = tid; c < ulong(columns); c += kThreads) {
    const float x = element(A, first + c);
    if (bits_float(magnitude_bits(x)) >= limit) {
      outliers[c] = 1;
    } else {
      largest = metal::max(largest, magnitude_bits(x));
    }
  }
  const float absmax = finite_magnitude(largest_of_group(largest, lane, simd, of_simds));
  const float scale = inverse_of_row(absmax);
  if (tid == 0) stats[block] = absmax;
  for (ulong c = tid; c < ulong(columns); c += kThreads) {
    const float x = without_outlier(element(A, first + c), limit);
    out[first + c] = is_nan(absmax) ? 0 : round_to_int8(x, scale);
  }
}

BNBX_INSTANTIATE("int8_vectorwise_quant_float32", int8_vectorwise_quant<float>)
BNBX_INSTANTIATE("int8_vectorwise_quant_float16", int8_vectorwise_quant<float16>)
BNBX_INSTANTIATE("int8_vectorwise_quant_bfloat16", int8_vectorwise_quant<bfloat16>)

// The codes of a column in which another row has an outlier; a thread takes an element.
template <class Code>
BNBX_KERNEL void clear_outlier_columns(const device uchar* outliers, constant long& numel,
                                       constant long& columns, device Code* out, BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (i < ulong(numel) && outliers[i % columns] != 0) out[i] = 0;
}

BNBX_INSTANTIATE("clear_outlier_columns", clear_outlier_columns<int8_t>)

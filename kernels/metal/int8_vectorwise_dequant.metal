// int8_vectorwise_dequant: codes times the unit of their row; a thread takes an element.
#include "metal/int8_rows.h"

template <class T>
BNBX_KERNEL void int8_vectorwise_dequant(const device int8_t* A, const device float* stats,
                                         constant long& numel, constant long& columns,
                                         device T* out, BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (i < ulong(numel)) out[i] = T(A[i]) * unit_of_row(stats[i / columns]);
}

BNBX_INSTANTIATE("int8_vectorwise_dequant", int8_vectorwise_dequant<float>)

// dequantize_blockwise: a thread takes an element.
#include "metal/device.h"

template <class T>
BNBX_KERNEL void dequantize_blockwise(const device uchar* A, const device float* absmax,
                                      constant long& n, const device float* code,
                                      constant long& blocksize, device T* out, BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (i < ulong(n)) set_element(out, i, code[A[i]] * absmax[i / ulong(blocksize)]);
}

BNBX_INSTANTIATE("dequantize_blockwise_float32", dequantize_blockwise<float>)
BNBX_INSTANTIATE("dequantize_blockwise_float16", dequantize_blockwise<float16>)
BNBX_INSTANTIATE("dequantize_blockwise_bfloat16", dequantize_blockwise<bfloat16>)

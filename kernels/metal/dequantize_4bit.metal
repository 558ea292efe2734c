// dequantize_4bit (blocks of 2^shift): a thread takes a byte, whose two elements are in one block.
#include "metal/codes_4bit.h"

template <class T>
BNBX_KERNEL void dequantize_4bit(const device uchar* A, const device float* absmax,
                                 constant long& n, constant long& shift, constant long& quant_type,
                                 device T* out, BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (2 * i >= ulong(n)) return;
  const float scale = absmax[2 * i >> shift];
  const uint both = A[i];
  set_element(out, 2 * i, level(quant_type, both >> 4) * scale);
  if (2 * i + 1 < ulong(n)) set_element(out, 2 * i + 1, level(quant_type, both & 15) * scale);
}

BNBX_INSTANTIATE("dequantize_4bit_float32", dequantize_4bit<float>)
BNBX_INSTANTIATE("dequantize_4bit_float16", dequantize_4bit<float16>)
BNBX_INSTANTIATE("dequantize_4bit_bfloat16", dequantize_4bit<bfloat16>)

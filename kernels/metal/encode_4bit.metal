// encode_4bit (blocks of 2^shift): a thread makes a byte, whose two elements are in one block.
#include "metal/codes_4bit.h"

template <class T>
BNBX_KERNEL void encode_4bit(const device T* A, constant long& n, const device float* absmax,
                             constant long& shift, constant long& quant_type, device uchar* out,
                             BNBX_PLACE) {
  const ulong i = thread_number(block, tid);
  if (2 * i >= ulong(n)) return;
  const float scale = absmax[2 * i >> shift];
  out[i] = encode_pair(A, n, i, is_nan(scale) ? scale : inverse_of(scale), quant_type);
}

BNBX_INSTANTIATE("encode_4bit_float32", encode_4bit<float>)
BNBX_INSTANTIATE("encode_4bit_float16", encode_4bit<float16>)
BNBX_INSTANTIATE("encode_4bit_bfloat16", encode_4bit<bfloat16>)

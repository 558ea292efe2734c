// quantize_4bit: a SIMD-group takes a block of 32 to 4096 elements and reads it twice, first for
// its largest magnitude.
#include "metal/codes_4bit.h"

template <class T>
BNBX_KERNEL void quantize_4bit(const device T* A, constant long& n, constant long& blocksize,
                               constant long& quant_type, device uchar* out, device float* absmax,
                               BNBX_PLACE) {
  const ulong number = simd_number(block, simd), first = number * blocksize;
  const ulong end = smaller(first + blocksize, n);
  uint largest = 0;
  for (ulong i = first + lane; i < end; i += kLanes) {
    largest = metal::max(largest, magnitude_bits(element(A, i)));
  }
  const float scale = finite_magnitude(metal::simd_max(largest));
  if (first >= end) return;
  if (lane == 0) absmax[number] = scale;
  const float inverse = is_nan(scale) ? scale : inverse_of(scale);
  for (ulong i = first / 2 + lane; 2 * i < end; i += kLanes) {
    out[i] = encode_pair(A, n, i, inverse, quant_type);
  }
}

BNBX_INSTANTIATE("quantize_4bit_float32", quantize_4bit<float>)
BNBX_INSTANTIATE("quantize_4bit_float16", quantize_4bit<float16>)
BNBX_INSTANTIATE("quantize_4bit_bfloat16", quantize_4bit<bfloat16>)

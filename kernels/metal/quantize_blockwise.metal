// quantize_blockwise: a SIMD-group takes a block of any size and reads it twice, first for its
// largest magnitude.
#include "metal/codes_8bit.h"

template <class T>
BNBX_KERNEL void quantize_blockwise(const device T* A, constant long& n, const device float* code,
                                    constant long& blocksize, device uchar* out,
                                    device float* absmax, BNBX_PLACE) {
  BNBX_SHARED float bounds[255];
  if (tid < 255) bounds[tid] = bound_after(code, tid);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  const ulong number = simd_number(block, simd), first = number * blocksize;
  const ulong end = smaller(first + blocksize, n);
  uint largest = 0;
  for (ulong i = first + lane; i < end; i += kLanes) {
    largest = metal::max(largest, magnitude_bits(element(A, i)));
  }
  const float scale = finite_magnitude(metal::simd_max(largest));
  if (first >= end) return;
  if (lane == 0) absmax[number] = scale;
  const float inverse = inverse_of(scale);
  for (ulong i = first + lane; i < end; i += kLanes) {
    const float x = metal::clamp(element(A, i) * inverse, -1.0f, 1.0f);
    out[i] = is_nan(scale) ? 0 : uchar(nearest_entry<256>(bounds, x));
  }
}

BNBX_INSTANTIATE("quantize_blockwise_float32", quantize_blockwise<float>)
BNBX_INSTANTIATE("quantize_blockwise_float16", quantize_blockwise<float16>)
BNBX_INSTANTIATE("quantize_blockwise_bfloat16", quantize_blockwise<bfloat16>)

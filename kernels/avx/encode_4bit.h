// encode_4bit: the nearest of 16 levels at scales that are given, of either sign.
#pragma once

#include "avx/quantize_4bit.h"

namespace bnbx::cpu {

template <class V>
void encode_4bit(const void* A, DType dtype, int64_t n, const float* absmax, int64_t blocksize,
                 QuantType quant_type, uint8_t* out, Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const Encoder4<V> encode(codebook(quant_type));
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      for (; b < end; ++b) {
        const int64_t start = b * blocksize;
        encode_4bit_block<V>(values + start, absmax[b], smaller(blocksize, n - start), encode,
                             out + start / 2);
      }
    });
  });
}

}  // namespace bnbx::cpu

// dequantize_blockwise: codes through a table of 256 entries, times the scale of their block.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

template <class V, class T>
static inline void dequantize_blockwise_block(const uint8_t* A, float absmax, int64_t n,
                                              const float* code, T* out) {
  const typename V::F32 scale(absmax);
  sweep<V>(n, [&](int64_t i, auto lanes) {
    prefetch(A + i + kOptimizerBlocksize);  // in an optimizer, other work comes before it
    store<V>(out + i, V::gather(code, load_bytes<V>(A + i, lanes)) * scale, lanes);
  });
}

template <class V>
void dequantize_blockwise(const uint8_t* A, const float* absmax, int64_t n, const float* code,
                          int64_t blocksize, void* out, DType dtype, Stream) {
  with_type(dtype, [&](auto type) {
    auto* values = static_cast<decltype(type)*>(out);
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      for (; b < end; ++b) {
        const int64_t start = b * blocksize;
        const int64_t count = smaller(blocksize, n - start);
        dequantize_blockwise_block<V>(A + start, absmax[b], count, code, values + start);
      }
    });
  });
}

}  // namespace bnbx::cpu

// dequantize_blockwise: codes through a table of 256 entries, times the scale of their block.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

template <class V>
void dequantize_blockwise(const uint8_t* A, const float* absmax, int64_t n, const float* code,
                          int64_t blocksize, void* out, DType dtype, Stream) {
  with_type(dtype, [&](auto type) {
    auto* values = static_cast<decltype(type)*>(out);
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      for (; b < end; ++b) {
        const int64_t start = b * blocksize;
        const int64_t count = smaller(blocksize, n - start);
        const typename V::F32 scale(absmax[b]);
        sweep<V>(count, [&](int64_t i, auto lanes) {
          const auto codes = load_bytes<V>(A + start + i, lanes);
          store<V>(values + start + i, V::gather(code, codes) * scale, lanes);
        });
      }
    });
  });
}

}  // namespace bnbx::cpu
